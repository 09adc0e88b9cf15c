"""The service behind the API: settings, metrics, the queue in front of the models, prediction."""

import asyncio
import math
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI, HTTPException, Request
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.requests import ClientDisconnect

from consilium.inference.predictor import Predictor
from consilium.serving import schemas, upload
from consilium.serving.schemas import ImagePrediction, MemberInfo, PredictResponse, PreparedImage
from consilium.serving.upload import UploadForm, UploadLimits
from datamodules.images import IMAGE_FORMATS, decoded_bytes, detect_format
from evaluation.metrics.conformal import ConformalSets
from evaluation.stats.estimate import Estimates
from evaluation.voters.registry import voter_spec

Result = TypeVar("Result")
Job = tuple[PreparedImage, "Future[ImagePrediction]"]
DECODED_BYTES_PER_PIXEL = 20  # of the largest image allowed: 1 GB at 50 megapixels
MAX_BATCH = 8  # on a CPU larger batches are no faster, but each image waits longer
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)  # buckets of a histogram
LOCAL_HOSTS = ["localhost", "127.0.0.1", "[::1]"]


@dataclass(frozen=True)
class ServerSettings:
    """How a model is served."""

    title: str = "Consilium"  # name of the model on the page
    refer_below: float | None = None  # probability below which an image is referred; None: never
    sets: ConformalSets | None = None  # answers with sets of classes as well
    limits: UploadLimits = field(default_factory=UploadLimits)  # of one request
    queue_size: int = 64  # images that may be in progress, waiting ones included
    max_batch: int = MAX_BATCH  # images per batch at most
    token: str = ""  # that requests must send; "": none
    hosts: list[str] = field(default_factory=lambda: list(LOCAL_HOSTS))  # allowed ones; []: any
    examples: list[Path] = field(default_factory=list)  # image files that the page offers
    pointing: Estimates = field(default_factory=dict)  # measured scores of saliency maps


class ServerMetrics:
    """Prometheus counters, gauges and histograms of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="consilium", registry=self.registry)
        gauge = partial(Gauge, namespace="consilium", registry=self.registry)
        histogram = partial(Histogram, namespace="consilium", registry=self.registry)
        self.requests = counter("requests", "Requests.", ["path", "status"])
        self.images = counter("images", "Predicted images.")
        self.model_seconds = counter("model_seconds", "Seconds of computation.")
        self.images_in_progress = gauge("images_in_progress", "Images in progress or waiting.")
        self.images_limit = gauge("images_limit", "Limit of that number.")
        self.batch_images = histogram("batch_images", "Images per batch.", buckets=(1, 2, 4, 8, 16))
        help_ = "Seconds of /v1/predict."
        self.request_seconds = histogram("request_seconds", help_, buckets=SECONDS)


class ServerBusy(Exception):
    """The server cannot take the request now; `retry_after` is in seconds."""

    def __init__(self, retry_after: int, reason: str = "the server is full") -> None:
        self.retry_after = retry_after
        super().__init__(f"{reason}; try again in {retry_after} s")


class Batcher:
    """Predicts images in the order of their arrival; waiting images form one batch.

    Only its thread calls the models. `on_batch` is called with the size of each batch before it is
    predicted, `on_work` with the seconds of each computation before its result is returned.
    """

    def __init__(
        self,
        predictor: Predictor,
        refer_below: float | None = None,
        max_batch: int = MAX_BATCH,
        sets: ConformalSets | None = None,
        on_batch: Callable[[int], None] = lambda size: None,
        on_work: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        self.predictor, self.refer_below, self.max_batch = predictor, refer_below, max_batch
        self.sets = sets
        self.on_batch, self.on_work = on_batch, on_work
        self.seconds_per_image = 0.0  # moving average
        self._queue: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread is running."""
        return self._thread.is_alive()

    def submit(self, image: PreparedImage) -> "Future[ImagePrediction]":
        """Queues an image and returns its future prediction, which may be canceled."""
        future: Future[ImagePrediction] = Future()
        self._queue.put((image, future))
        return future

    def close(self) -> None:
        """Predicts the images in the queue, then ends the thread."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        """Predicts batches from the queue until it is closed; the target of the thread."""
        is_open = True
        while is_open:
            items = self._next_items()
            is_open = None not in items
            jobs = [item for item in items if item and item[1].set_running_or_notify_cancel()]
            if jobs:
                self.on_batch(len(jobs))
                start = time.perf_counter()
                self._complete(jobs)
                seconds, average = (time.perf_counter() - start) / len(jobs), self.seconds_per_image
                self.seconds_per_image = 0.8 * average + 0.2 * seconds if average else seconds

    def _next_items(self) -> list[Job | None]:
        """Waits for the next item of the queue; returns it and those behind it, None at the end."""
        items = [self._queue.get()]
        while len(items) < self.max_batch and items[-1] and not self._queue.empty():
            items.append(self._queue.get())
        return items

    def _complete(self, jobs: Sequence[Job]) -> None:
        """Predicts a batch and sets its futures, last those with saliency maps, which take longer.

        A failed batch is repeated image by image, so that only the cause of the error fails.
        """
        images = [image for image, _ in jobs]
        try:
            with self._timed():
                predictions = schemas.predict_images(
                    self.predictor, images, self.refer_below, self.sets
                )
        except Exception as error:
            if len(jobs) == 1:
                jobs[0][1].set_exception(error)
                return
            for job in jobs:
                self._complete([job])
            return
        results = zip(jobs, predictions, strict=True)
        for (image, future), prediction in sorted(results, key=lambda row: row[0][0].saliency_maps):
            try:
                if image.saliency_maps:
                    with self._timed():
                        prediction = schemas.add_saliency_maps(self.predictor, image, prediction)
                future.set_result(prediction)
            except Exception as error:
                future.set_exception(error)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        """Calls `on_work` with the seconds that the context took."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.on_work(time.perf_counter() - start)


async def until_disconnect(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """The result of `work`, which is canceled if the client closes the connection."""
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientDisconnect
    finally:
        task.cancel()
        gone.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    """Returns when the client of a request, whose body has been read, has closed the connection."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class Service:
    """Predicts the images of requests, within limits of images in progress and of bytes in memory.

    The limits count requests whose images are not yet decoded; only the event loop changes them.
    """

    def __init__(self, predictor: Predictor, settings: ServerSettings) -> None:
        self.predictor, self.settings, self.metrics = predictor, settings, ServerMetrics()
        self.batcher = Batcher(
            predictor,
            settings.refer_below,
            settings.max_batch,
            settings.sets,
            on_batch=self.metrics.batch_images.observe,
            on_work=self.metrics.model_seconds.inc,
        )
        self.num_images = self.num_bytes = 0  # in progress
        self.metrics.images_in_progress.set_function(lambda: self.num_images)
        self.metrics.images_limit.set(settings.queue_size)
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="decoder")

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Completes the images in progress before the application ends."""
        yield
        self.decoders.shutdown()
        self.batcher.close()

    async def predict(self, request: Request) -> PredictResponse:
        """Predicts all images of a request, or none: then raises HTTPException or ServerBusy."""
        limits = self.settings.limits
        upload.refuse_long_body(request, limits)
        if not self._has_capacity(1, 0):
            await upload.discard_body(request, limits)
            raise ServerBusy(self.retry_after)
        with self._admission() as admit:
            form = await upload.read_form(request, limits, partial(admit, 0))
            admit(len(form.files), 0)
            self._check_form(form)
            return await until_disconnect(request, self._predict_form(form, partial(admit, 0)))

    def model_info(self) -> schemas.ModelInfo:
        """Description of the served ensemble and of the limits."""
        predictor, settings, limits = self.predictor, self.settings, self.settings.limits
        voter, calibration = predictor.ensemble.voter, predictor.ensemble.calibration
        members = [
            MemberInfo(name=m.name, weights=m.weights_hash, preprocess=m.preprocess.to_dict())
            for m in predictor.members
        ]
        groups = list(voter.weight_rows(predictor.class_names)) if voter.attribute else []
        return schemas.ModelInfo(
            title=settings.title,
            class_names=predictor.class_names,
            voter=voter.name,
            voter_label=voter_spec(voter.name).label,
            calibrated=not calibration.is_neutral,
            members_calibrated=bool(predictor.ensemble.member_calibrations),
            temperature=None if calibration.scales else calibration.temperature,
            temperature_at_bound=calibration.at_bound,
            calibration=calibration.describe(),
            refer_below=settings.refer_below,
            sets=None if settings.sets is None else 1 - settings.sets.alpha,
            group_attribute=voter.attribute or None,
            groups=groups,
            saliency_maps=predictor.can_explain,
            pointing={
                name: schemas.PointingScore(value=e.value, low=e.low, high=e.high, n=e.n)
                for name, e in settings.pointing.items()
                if e.value is not None
            },
            members=members,
            formats=list(IMAGE_FORMATS),
            max_bytes=limits.max_bytes,
            max_files=limits.max_files,
            max_pixels=limits.max_pixels,
            examples=[path.name for path in settings.examples],
        )

    @property
    def retry_after(self) -> int:
        """Estimated seconds until all images in progress are done, from 1 to 60."""
        return min(60, max(1, math.ceil(self.batcher.seconds_per_image * self.num_images)))

    def _has_capacity(self, num_images: int, num_bytes: int) -> bool:
        """Whether this many more images and bytes would be within the limits."""
        images_fit = self.num_images + num_images <= self.settings.queue_size
        max_bytes = 8 * self.settings.limits.max_bytes + self.max_decoded_bytes
        return images_fit and self.num_bytes + num_bytes <= max_bytes

    @property
    def max_decoded_bytes(self) -> int:
        """Bytes for the decoded images of all requests: two large ones, or many usual ones."""
        return DECODED_BYTES_PER_PIXEL * self.settings.limits.max_pixels

    @contextmanager
    def _admission(self) -> Iterator[Callable[[int, int], None]]:
        """Yields a function that counts images and bytes as in progress until the context ends.

        Only what has arrived counts, so that a client that sends nothing takes nothing.
        """
        images = size = 0

        def admit(num_images: int, num_bytes: int) -> None:
            """Adds images and bytes to those in progress; raises ServerBusy over the limits."""
            nonlocal images, size
            if not self._has_capacity(num_images, num_bytes):
                raise ServerBusy(self.retry_after)
            images, size = images + num_images, size + num_bytes
            self.num_images, self.num_bytes = (
                self.num_images + num_images,
                self.num_bytes + num_bytes,
            )

        try:
            yield admit
        finally:
            self.num_images, self.num_bytes = self.num_images - images, self.num_bytes - size

    async def _predict_form(
        self, form: UploadForm, admit: Callable[[int], None]
    ) -> PredictResponse:
        """Predicts the images of a form; `admit` counts the bytes of the decoded images."""
        timeout = self.settings.limits.timeout
        try:
            async with asyncio.timeout(timeout):
                sizes = [await self._decoded_bytes(*file) for file in form.files]
                if (size := sum(sizes)) > self.max_decoded_bytes:
                    reason = upload.too_large(size, self.max_decoded_bytes)
                    raise HTTPException(413, f"decoded images of {reason}")
                admit(size)
                images = await asyncio.gather(*(self._prepare(form, *file) for file in form.files))
                futures = [asyncio.wrap_future(self.batcher.submit(image)) for image in images]
                predictions = await asyncio.gather(*futures)
        except TimeoutError:
            raise ServerBusy(self.retry_after, f"no prediction within {timeout:g} s") from None
        self.metrics.images.inc(len(predictions))
        return PredictResponse(predictions=predictions)

    async def _decoded_bytes(self, name: str, data: bytes) -> int:
        """Bytes that decoding an image file takes at most; HTTPException if it is none.

        A limit of this memory is also one of the time that decoding takes.
        """
        if detect_format(data[:132]) is None:
            formats = ", ".join(IMAGE_FORMATS)
            raise HTTPException(415, f"{name}: not an image file; allowed are {formats}")
        pixels = np.frombuffer(data, np.uint8)
        return await self._decode(name, decoded_bytes, pixels, self.settings.limits.max_pixels)

    async def _prepare(self, form: UploadForm, name: str, data: bytes) -> PreparedImage:
        """Decodes and preprocesses an image file in the thread pool of decoders."""
        arguments = (self.predictor, form, name, data, self.settings.limits.max_pixels)
        return await self._decode(name, schemas.prepare_image, *arguments)

    async def _decode(self, name: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """The result of a function in the thread pool of decoders; its ValueError is status 422."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self.decoders, function, *arguments)
        except ValueError as error:
            raise HTTPException(422, f"{name}: {error}") from None

    def _check_form(self, form: UploadForm) -> None:
        """Raises HTTPException if the voter's attribute is missing or maps are impossible."""
        attribute = self.predictor.ensemble.voter.attribute
        if attribute and form.group.strip() in ("", "nan"):
            reason = f"group is {form.group!r}; this ensemble needs the {attribute} of the image"
            raise HTTPException(422, reason)
        if form.saliency_maps and not self.predictor.can_explain:
            reason = "saliency_maps is true, but this export has none; serve the checkpoints"
            raise HTTPException(422, reason)
