"""The web around the models: predict, what the model is, health, metrics, the page and its docs."""

import hmac
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consilium.inference.predictor import Model
from consilium.inference.thumbnails import thumbnail
from consilium.serving import pages
from consilium.serving.admission import Full
from consilium.serving.metrics import SECONDS, Meter
from consilium.serving.service import NOTICE, ModelFacts, Predicted, Service, Settings

PATHS = ("/", "/docs", "/healthz", "/metrics", "/openapi.json", "/v1/model", "/v1/predict")


def make(model: Model, settings: Settings) -> FastAPI:
    """The application."""
    service = Service(model, settings)
    app = FastAPI(title="Consilium", version="1", description=NOTICE, lifespan=service.lifespan,
                  docs_url=None, redoc_url=None)  # fmt: skip
    app.add_middleware(Around, meter=service.meter)
    if settings.hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.hosts)
    app.add_exception_handler(Full, full)
    locked = [Depends(gate(settings.token))] if settings.token else []
    add_api(app, service, locked)
    add_pages(app, service, locked)
    return app


def add_api(app: FastAPI, service: Service, locked: list[Any]) -> None:
    """What programs ask."""

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
        others = {"places_taken": float(room.taken), "places": float(room.places),
                  "models_seconds_total": service.desk.busy}  # fmt: skip
        return service.meter.text({f"consilium_{name}": value for name, value in others.items()})


def add_pages(app: FastAPI, service: Service, locked: list[Any]) -> None:
    """What people see; every byte of it comes from here."""
    examples = service.settings.examples

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return pages.answer(pages.page(service.settings.title))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return pages.answer(pages.docs(app.openapi()))

    @app.get("/examples/{at}", include_in_schema=False, dependencies=locked)
    def example(at: int) -> Response:
        return Response(_chosen(examples, at).read_bytes(), media_type="application/octet-stream")

    @app.get("/examples/{at}/thumbnail", include_in_schema=False, dependencies=locked)
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
