"""The service behind the API: settings, model information, metrics, and predicting a request."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from pydantic import BaseModel, Field

from consilium.inference.predictor import Predictor
from consilium.serving import upload
from consilium.serving.batcher import MAX_BATCH, AdmissionControl, Batcher, ServerBusy
from consilium.serving.schemas import ImagePrediction, PreparedImage, prepare_image
from consilium.serving.upload import UploadForm, UploadLimits
from datamodules.images import IMAGE_FORMATS, detect_format
from evaluation.voters.registry import voter_spec

NOTICE = "Research use only. Not a medical device."
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # buckets of a histogram
LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]


@dataclass(frozen=True)
class ServerSettings:
    """How a model is served.

    Args:
        title: name of the model on the page.
        refer_below: probability below which an image is referred; None for no referral.
        limits: limits of one request.
        queue_size: images that may be in progress, waiting ones included.
        max_batch: images per batch at most.
        token: the token that requests must send; '' for none.
        hosts: host names that requests may use; empty for any.
        examples: image files that the page offers.
    """

    title: str = "Consilium"
    refer_below: float | None = None
    limits: UploadLimits = field(default_factory=UploadLimits)
    queue_size: int = 64
    max_batch: int = MAX_BATCH
    token: str = ""
    hosts: list[str] = field(default_factory=lambda: list(LOCAL_HOSTS))
    examples: list[Path] = field(default_factory=list)


class MemberInfo(BaseModel):
    """One model of the ensemble."""

    name: str
    weights: str = Field(description="hash of its weights")
    preprocess: dict[str, object]


class ModelInfo(BaseModel):
    """The served ensemble, and the limits of a request."""

    title: str
    class_names: list[str]
    voter: str = Field(description="name of the rule that combines the models")
    voter_label: str = Field(description="the same for people")
    calibrated: bool
    temperature: float
    temperature_at_bound: bool = Field(
        description="whether validation had too few errors to fit the temperature"
    )
    refer_below: float | None
    group_attribute: str | None = Field(description="attribute that field `group` must give")
    groups: list[str] = Field(description="its values with weights of their own")
    saliency_maps: bool = Field(description="whether saliency maps can be requested")
    members: list[MemberInfo]
    formats: list[str]
    max_bytes: int
    max_files: int
    max_pixels: int
    examples: list[str]
    notice: str = NOTICE


class PredictResponse(BaseModel):
    """One prediction per image, in the order of the images."""

    predictions: list[ImagePrediction]
    notice: str = NOTICE


class ServerMetrics:
    """Counters and histograms of one server, for Prometheus."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter, histogram = partial(Counter, registry=self.registry), self._histogram
        self.requests = counter("consilium_requests", "Requests.", ["path", "status"])
        self.images = counter("consilium_images", "Predicted images.")
        self.model_seconds = counter("consilium_model_seconds", "Seconds of computation.")
        self.batch_images = histogram("batch_images", "Images per batch.", (1, 2, 4, 8, 16))
        self.request_seconds = histogram("request_seconds", "Seconds of /v1/predict.", SECONDS)

    def watch(self, admission: AdmissionControl) -> None:
        """Adds gauges of the images in progress and their limit."""
        gauge = partial(Gauge, registry=self.registry)
        in_progress = gauge("consilium_images_in_progress", "Images in progress or waiting.")
        in_progress.set_function(lambda: admission.num_images)
        gauge("consilium_images_limit", "Limit of that number.").set(admission.max_images)

    def _histogram(self, name: str, text: str, buckets: Sequence[float]) -> Histogram:
        return Histogram(f"consilium_{name}", text, buckets=buckets, registry=self.registry)


class Service:
    """Predicts the images of requests."""

    def __init__(self, predictor: Predictor, settings: ServerSettings) -> None:
        self.predictor, self.settings, self.metrics = predictor, settings, ServerMetrics()
        self.batcher = Batcher(
            predictor,
            settings.refer_below,
            settings.max_batch,
            on_batch=self.metrics.batch_images.observe,
            on_work=self.metrics.model_seconds.inc,
        )
        self.admission = AdmissionControl(
            settings.queue_size,
            8 * settings.limits.max_bytes,
            lambda: self.batcher.seconds_per_image,
        )
        self.metrics.watch(self.admission)
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="decoder")

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Completes what is in progress before the application ends."""
        yield
        self.decoders.shutdown()
        self.batcher.close()

    async def predict(self, request: Request) -> PredictResponse:
        """Predicts all images of a request, or none."""
        limits = self.settings.limits
        size = upload.declared_length(request, limits)
        if not self.admission.has_capacity(1, size):
            await upload.discard_body(request, limits)
            raise ServerBusy(self.admission.retry_after)
        with self.admission.admit(1, size):
            form = await upload.read_form(request, limits)
            with self.admission.admit(len(form.files) - 1):
                self._check(form)
                return await self._predict_form(form)

    def model_info(self) -> ModelInfo:
        """Description of the served ensemble and of the limits."""
        predictor, settings, limits = self.predictor, self.settings, self.settings.limits
        ensemble, attribute = predictor.ensemble, predictor.ensemble.attribute
        return ModelInfo(
            title=settings.title,
            class_names=predictor.class_names,
            voter=predictor.ensemble.name,
            voter_label=voter_spec(predictor.ensemble.name).label,
            calibrated=ensemble.temperature.value != 1.0,
            temperature=ensemble.temperature.value,
            temperature_at_bound=ensemble.temperature.at_bound,
            refer_below=settings.refer_below,
            group_attribute=attribute or None,
            groups=list(ensemble.weight_rows(predictor.class_names)) if attribute else [],
            saliency_maps=predictor.can_explain,
            members=[
                MemberInfo(name=m.name, weights=m.weights_hash, preprocess=m.preprocess.to_dict())
                for m in predictor.members
            ],
            formats=list(IMAGE_FORMATS),
            max_bytes=limits.max_bytes,
            max_files=limits.max_files,
            max_pixels=limits.max_pixels,
            examples=[path.name for path in settings.examples],
        )

    async def _predict_form(self, form: UploadForm) -> PredictResponse:
        timeout = self.settings.limits.timeout
        try:
            async with asyncio.timeout(timeout):
                images = await asyncio.gather(*(self._prepare(form, *file) for file in form.files))
                futures = [asyncio.wrap_future(self.batcher.submit(image)) for image in images]
                predictions = await asyncio.gather(*futures)
        except TimeoutError:
            reason = f"no prediction within {timeout:g} s"
            raise ServerBusy(self.admission.retry_after, reason) from None
        self.metrics.images.inc(len(predictions))
        return PredictResponse(predictions=predictions)

    async def _prepare(self, form: UploadForm, name: str, data: bytes) -> PreparedImage:
        if detect_format(data[:132]) is None:
            formats = ", ".join(IMAGE_FORMATS)
            raise HTTPException(415, f"{name}: not an image file; allowed are {formats}")
        arguments = (self.predictor, form, name, data, self.settings.limits.max_pixels)
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.decoders, prepare_image, *arguments)
        except ValueError as error:
            raise HTTPException(422, f"{name}: {error}") from None

    def _check(self, form: UploadForm) -> None:
        """Refuses a form that lacks the voter's attribute or requests impossible maps."""
        attribute = self.predictor.ensemble.attribute
        if attribute and form.group.strip() in ("", "nan"):
            raise HTTPException(
                422,
                f"group is {form.group!r}; this ensemble needs the {attribute} of the image",
            )
        if form.saliency_maps and not self.predictor.can_explain:
            raise HTTPException(
                422, "saliency_maps is true, but this export has none; serve the checkpoints"
            )
