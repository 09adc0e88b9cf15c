"""The web around the models: predict, what the model is, health, metrics, the page and its docs."""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from commands.looking import Model
from commands.serving import pages, upload
from commands.serving.answers import Answer, Asked, prepared
from commands.serving.desk import TOGETHER, Desk
from commands.serving.meter import SECONDS, SIZES, Meter
from commands.serving.room import Full, Room
from commands.serving.upload import Form, Limits
from commands.thumbnails import thumbnail
from datamodules.headers import FORMATS, format_of

NOTICE = "Research use only. Not a medical device."
PATHS = ("/", "/docs", "/healthz", "/metrics", "/openapi.json", "/v1/model", "/v1/predict")
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
        try:
            async with asyncio.timeout(self.settings.limits.seconds):
                asked = await asyncio.gather(*(self._prepared(form, *file) for file in form.files))
                futures = [asyncio.wrap_future(self.desk.submit(one)) for one in asked]
                answers = await asyncio.gather(*futures)
        except TimeoutError:
            raise Full(self.room.retry) from None
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
        if attribute and not form.part:
            raise HTTPException(422, f"body_part is missing: this council's voter weighs its "
                                f"members by {attribute}")  # fmt: skip
        if form.maps and not self.model.has_maps:
            raise HTTPException(422, "maps: this export has none; serve the checkpoints")

    def facts(self) -> ModelFacts:
        """What is being asked here."""
        model, settings = self.model, self.settings
        council, limits = model.council, settings.limits
        return ModelFacts(
            title=settings.title,
            class_names=model.class_names,
            voter=model.kind,
            calibrated=council.temperature.value != 1.0,
            temperature=council.temperature.value,
            at_bound=council.temperature.at_bound,
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
    voter = model.council.voter
    return list(getattr(getattr(voter, "rest", voter), "values", []))


def make(model: Model, settings: Settings) -> FastAPI:
    """The application."""
    service = Service(model, settings)
    app = FastAPI(title="Consilium", version="1", description=NOTICE, lifespan=service.lifespan,
                  docs_url=None, redoc_url=None)  # fmt: skip
    app.add_middleware(Around, meter=service.meter)
    if settings.hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.hosts)
    app.add_exception_handler(Full, full)
    add_api(app, service)
    add_pages(app, service)
    return app


def add_api(app: FastAPI, service: Service) -> None:
    """What programs ask."""
    locked = [Depends(gate(service.settings.token))] if service.settings.token else []

    @app.post("/v1/predict", dependencies=locked, openapi_extra=pages.FORM, responses=pages.ERRORS)
    async def predict(request: Request) -> Predicted:
        """Class, confidence and votes of one or more pictures; with `maps`, where they were seen.

        All pictures of a request are answered, or none and the reason names the picture.
        """
        return await service.predict(request)

    @app.get("/v1/model", dependencies=locked)
    async def facts() -> ModelFacts:
        """Classes, voter, members with the hashes of their weights, and the limits."""
        return service.facts()

    @app.get("/healthz", responses={503: {"description": "it answers no more"}})
    async def health() -> dict[str, str]:
        """Whether it answers."""
        if not service.desk.alive:
            raise HTTPException(503, "the models have stopped")
        return {"status": "ok"}

    @app.get("/metrics", dependencies=locked, response_class=PlainTextResponse)
    async def metrics() -> str:
        """Counts and durations for Prometheus."""
        room = service.room
        gauges = {"places_taken": float(room.taken), "places": float(room.places)}
        return service.meter.text({f"consilium_{name}": value for name, value in gauges.items()})


def add_pages(app: FastAPI, service: Service) -> None:
    """What people see; every byte of it comes from here."""
    examples = service.settings.examples

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return pages.answer(pages.page(service.settings.title))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return pages.answer(pages.docs(app.openapi()))

    @app.get("/examples/{at}", include_in_schema=False)
    def example(at: int) -> Response:
        return Response(_chosen(examples, at).read_bytes(), media_type="application/octet-stream")

    @app.get("/examples/{at}/thumbnail", include_in_schema=False)
    def small(at: int) -> Response:
        return Response(thumbnail(_chosen(examples, at), 160), media_type="image/png")


def _chosen(examples: list[Path], at: int) -> Path:
    if not 0 <= at < len(examples):
        raise HTTPException(404, f"example {at}: there are {len(examples)}")
    return examples[at]


def gate(token: str) -> Callable[[Request], None]:
    """Lets pass who knows the token."""

    def check(request: Request) -> None:
        given = request.headers.get("authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {token}".encode()):
            said = "send the token as 'Authorization: Bearer TOKEN'"
            raise HTTPException(401, said, {"WWW-Authenticate": "Bearer"})

    return check


async def full(request: Request, error: Exception) -> Response:
    """503 that says when to come again."""
    retry = {"Retry-After": str(error.retry)} if isinstance(error, Full) else {}
    return JSONResponse({"detail": str(error)}, 503, retry)


class Around:
    """Counts and times every request, and tells browsers to trust nothing else."""

    def __init__(self, app: ASGIApp, meter: Meter) -> None:
        self.app, self.meter = app, meter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes one request on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def sent(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                for name, value in pages.HEADERS.items():
                    MutableHeaders(scope=message).setdefault(name, value)
            await send(message)

        try:
            return await self.app(scope, receive, sent)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.meter.add("consilium_requests_total", 1, f'path="{path}",status="{status}"')
            if path == "/v1/predict":
                spent = time.perf_counter() - start
                self.meter.observe("consilium_request_seconds", spent, SECONDS)
