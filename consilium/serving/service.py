"""The models behind their desk: a request becomes pictures, and pictures become answers."""

import asyncio
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import FastAPI, HTTPException, Request
from pydantic import BaseModel

from consilium.inference.predictor import Model
from consilium.serving import upload
from consilium.serving.admission import Full, Room
from consilium.serving.batcher import TOGETHER, Desk
from consilium.serving.metrics import SIZES, Meter
from consilium.serving.schemas import Answer, Asked, prepared
from consilium.serving.upload import Form, Limits
from datamodules.headers import FORMATS, format_of

NOTICE = "Research use only. Not a medical device."
LOCAL = ["localhost", "127.0.0.1", "[::1]"]


@dataclass(frozen=True)
class Settings:
    """How a model is served.

    Args:
        title: what the page calls the model.
        refer_below: confidence below which a picture is referred; None for no referral.
        limits: what one request may hold.
        places: pictures that may be inside at once.
        together: pictures that go through the models at once, at most.
        token: what a caller must know; '' for none.
        hosts: names under which it may be called; empty for any.
        examples: pictures that the page offers.
    """

    title: str = "Consilium"
    refer_below: float | None = None
    limits: Limits = field(default_factory=Limits)
    places: int = 64
    together: int = TOGETHER
    token: str = ""
    hosts: list[str] = field(default_factory=lambda: list(LOCAL))
    examples: list[Path] = field(default_factory=list)


class MemberFacts(BaseModel):
    """One member."""

    name: str
    weights: str
    preprocess: dict[str, object]


class ModelFacts(BaseModel):
    """What is being asked here."""

    title: str
    class_names: list[str]
    voter: str
    calibrated: bool
    temperature: float
    at_bound: bool
    refer_below: float | None
    body_parts: list[str] | None
    maps: bool
    members: list[MemberFacts]
    formats: list[str]
    max_bytes: int
    max_files: int
    max_pixels: int
    examples: list[str]
    notice: str = NOTICE


class Predicted(BaseModel):
    """One answer a picture, in the order in which the pictures came."""

    answers: list[Answer]
    notice: str = NOTICE


class Service:
    """The models behind their desk, and what is counted."""

    def __init__(self, model: Model, settings: Settings) -> None:
        self.model, self.settings, self.meter = model, settings, Meter()
        self.desk = Desk(model, settings.refer_below, settings.together, self._batch)
        self.room = Room(settings.places, 8 * settings.limits.bytes, lambda: self.desk.pace)
        self.decoders = ThreadPoolExecutor(2, thread_name_prefix="decoder")

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """At the end what was begun is finished."""
        yield
        self.decoders.shutdown()
        self.desk.close()

    async def predict(self, request: Request) -> Predicted:
        """Answers every picture of a request, or none."""
        limits = self.settings.limits
        size = upload.declared(request, limits)
        if not self.room.fits(1, size):
            await upload.drained(request, limits)
            raise Full(self.room.retry)
        with self.room.admitted(size) as place:
            form = await upload.read(request, limits)
            place.take(len(form.files) - 1)
            self._check(form)
            return await self._answered(form)

    async def _answered(self, form: Form) -> Predicted:
        most = self.settings.limits.seconds
        try:
            async with asyncio.timeout(most):
                asked = await asyncio.gather(*(self._prepared(form, *file) for file in form.files))
                futures = [asyncio.wrap_future(self.desk.submit(one)) for one in asked]
                answers = await asyncio.gather(*futures)
        except TimeoutError:
            raise Full(self.room.retry, f"no answer within {most:g} s") from None
        self.meter.add("consilium_pictures_total", len(answers))
        return Predicted(answers=answers)

    async def _prepared(self, form: Form, name: str, data: bytes) -> Asked:
        if format_of(data[:132]) is None:
            raise HTTPException(415, f"{name}: none of {', '.join(FORMATS)}, by its first bytes")
        most = self.settings.limits.pixels
        what = (self.model, name, data, form.frame, form.part, form.maps, most)
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self.decoders, lambda: prepared(*what)
            )
        except ValueError as error:
            raise HTTPException(422, f"{name}: {error}") from None

    def _check(self, form: Form) -> None:
        """What the models need beside the pixels."""
        attribute = self.model.attribute
        if attribute and form.part.strip() in ("", "nan"):
            raise HTTPException(422, f"body_part is {form.part!r}: its voter weighs its "
                                f"members by {attribute}")  # fmt: skip
        if form.maps and not self.model.has_maps:
            raise HTTPException(422, "maps: this export has none; serve the checkpoints")

    def facts(self) -> ModelFacts:
        """What is being asked here."""
        model, settings = self.model, self.settings
        ensemble, limits = model.ensemble, settings.limits
        return ModelFacts(
            title=settings.title,
            class_names=model.class_names,
            voter=model.kind,
            calibrated=ensemble.temperature.value != 1.0,
            temperature=ensemble.temperature.value,
            at_bound=ensemble.temperature.at_bound,
            refer_below=settings.refer_below,
            body_parts=parts_of(model),
            maps=model.has_maps,
            members=[
                MemberFacts(name=m.name, weights=m.weights, preprocess=m.preprocess.to_dict())
                for m in model.members
            ],
            formats=list(FORMATS),
            max_bytes=limits.bytes,
            max_files=limits.files,
            max_pixels=limits.pixels,
            examples=[path.name for path in settings.examples],
        )

    def _batch(self, size: int) -> None:
        self.meter.observe("consilium_batch_pictures", size, SIZES)


def parts_of(model: Model) -> list[str] | None:
    """The body parts that the voter knows; None if it needs none."""
    if not model.attribute:
        return None
    voter = model.ensemble.voter
    return list(getattr(getattr(voter, "rest", voter), "values", []))
