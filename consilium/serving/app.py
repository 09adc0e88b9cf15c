"""The FastAPI application: REST API, health, metrics and the web page."""

import base64
import hashlib
import hmac
import html
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consilium.inference.panels import read_thumbnail
from consilium.inference.predictor import Predictor
from consilium.serving.batcher import ServerBusy
from consilium.serving.service import (
    NOTICE,
    ModelInfo,
    PredictResponse,
    ServerMetrics,
    ServerSettings,
    Service,
)

PATHS = ("/", "/healthz", "/metrics", "/openapi.json", "/v1/model", "/v1/predict")
THUMBNAIL_SIDE = 160  # pixels
DESCRIPTION = f"""\
Classifies uploaded images. {NOTICE}

`curl -F files=@image.png http://127.0.0.1:8000/v1/predict` predicts one image. An error has the
body `{{"detail": reason}}`. If the server has a token, send `Authorization: Bearer TOKEN`.
"""
DENY_ALL = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": DENY_ALL,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
FIELDS: dict[str, dict[str, Any]] = {
    "files": {
        "type": "array",
        "items": {"type": "string", "format": "binary"},
        "description": "PNG, JPEG, TIFF, BMP, WebP or DICOM files, recognized by their content",
    },
    "group": {
        "type": "string",
        "description": "value of `group_attribute` of /v1/model, if the ensemble needs one",
    },
    "frame": {"type": "integer", "description": "frame number, for files with several frames"},
    "saliency_maps": {
        "type": "boolean",
        "default": False,
        "description": "adds Grad-CAM maps of the ensemble and of each model as PNG files",
    },
}
FORM = {"schema": {"type": "object", "required": ["files"], "properties": FIELDS}}
REQUEST_BODY = {"requestBody": {"required": True, "content": {"multipart/form-data": FORM}}}
ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "invalid form or unknown field"},
    401: {"description": "missing or wrong token"},
    408: {"description": "the body took too long"},
    413: {"description": "the body is too large"},
    415: {"description": "not an image file"},
    422: {"description": "an image that cannot be read; `detail` names it"},
    503: {"description": "the server is busy; retry after `Retry-After` seconds"},
}


def create_app(predictor: Predictor, settings: ServerSettings) -> FastAPI:
    """The application that serves a model."""
    service = Service(predictor, settings)
    # FastAPI's /docs loads scripts from the internet; the schema is at /openapi.json
    app = FastAPI(title="Consilium", version="1", description=DESCRIPTION,
                  lifespan=service.lifespan, docs_url=None, redoc_url=None)  # fmt: skip
    app.add_middleware(MetricsAndHeaders, metrics=service.metrics)
    if settings.hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.hosts)
    app.add_exception_handler(ServerBusy, busy_response)
    token_check = [Depends(require_token(settings.token))] if settings.token else []
    add_api(app, service, token_check)
    add_page(app, service, token_check)
    return app


def add_api(app: FastAPI, service: Service, token_check: list[Any]) -> None:
    """Adds the endpoints for programs."""

    @app.post("/v1/predict", dependencies=token_check, openapi_extra=REQUEST_BODY, responses=ERRORS)
    async def predict(request: Request) -> PredictResponse:
        """Class, probability and the members' predictions of one or more images.

        All images of a request are predicted, or none and the error names the image.
        """
        return await service.predict(request)

    @app.get("/v1/model", dependencies=token_check)
    async def model() -> ModelInfo:
        """Classes, voter, members with the hashes of their weights, and the limits."""
        return service.model_info()

    @app.get("/healthz", responses={503: {"description": "the models have stopped"}})
    async def health() -> dict[str, str]:
        """Whether the server can predict."""
        if not service.batcher.is_alive:
            raise HTTPException(503, "the models have stopped; restart the server")
        return {"status": "ok"}

    @app.get("/metrics", dependencies=token_check, response_class=Response)
    async def metrics() -> Response:
        """Counters and histograms for Prometheus."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def add_page(app: FastAPI, service: Service, token_check: list[Any]) -> None:
    """Adds the web page and its example images."""
    examples = service.settings.examples

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        return page_response(text.replace("{title}", html.escape(service.settings.title)))

    @app.get("/examples/{index}", include_in_schema=False, dependencies=token_check)
    def example(index: int) -> Response:
        data = _example_path(examples, index).read_bytes()
        return Response(data, media_type="application/octet-stream")

    @app.get("/examples/{index}/thumbnail", include_in_schema=False, dependencies=token_check)
    def thumbnail(index: int) -> Response:
        png = read_thumbnail(_example_path(examples, index), THUMBNAIL_SIDE)
        return Response(png, media_type="image/png")


def page_response(text: str) -> HTMLResponse:
    """A page that may load only its own style and script, and data of its own server."""
    parts = {tag: re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S) for tag in ("style", "script")}
    rules = [f"{tag}-src {' '.join(map(_csp_hash, part))}" for tag, part in parts.items() if part]
    policy = "; ".join([DENY_ALL, *rules, "img-src 'self' data: blob:", "connect-src 'self'"])
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


def require_token(token: str) -> Callable[[Request], None]:
    """A dependency that refuses requests without the token."""

    def check(request: Request) -> None:
        header = request.headers.get("authorization", "")
        if not hmac.compare_digest(header.encode(), f"Bearer {token}".encode()):
            reason = "missing or wrong token; send it as 'Authorization: Bearer TOKEN'"
            raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})

    return check


async def busy_response(request: Request, error: Exception) -> Response:
    """Status 503 with Retry-After."""
    headers = {"Retry-After": str(error.retry_after)} if isinstance(error, ServerBusy) else {}
    return JSONResponse({"detail": str(error)}, 503, headers)


class MetricsAndHeaders:
    """Middleware that counts and times requests, and adds security headers to responses."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Processes one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        start, status = time.perf_counter(), 500

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                for name, value in HEADERS.items():
                    MutableHeaders(scope=message).setdefault(name, value)
            await send(message)

        try:
            return await self.app(scope, receive, send_with_headers)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"
            self.metrics.requests.labels(path, str(status)).inc()
            if path == "/v1/predict":
                self.metrics.request_seconds.observe(time.perf_counter() - start)


def _example_path(examples: list[Path], index: int) -> Path:
    if not 0 <= index < len(examples):
        raise HTTPException(404, f"example {index} does not exist; there are {len(examples)}")
    return examples[index]


def _csp_hash(content: str) -> str:
    digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
    return f"'sha256-{digest}'"
