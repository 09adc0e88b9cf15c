"""The FastAPI application and its process: API, metrics, web page, socket, referral threshold."""

import base64
import hashlib
import hmac
import html
import re
import signal
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from consilium.inference import data_config, saliency_evaluation
from consilium.inference.predictor import Predictor, run_folder_of
from consilium.inference.val_predictions import val_table
from consilium.serving import TOKEN_VARIABLE
from consilium.serving.connections import BACKLOG, TimedProtocol
from consilium.serving.schemas import ModelInfo, PredictResponse
from consilium.serving.service import ServerBusy, ServerMetrics, ServerSettings, Service
from datamodules.images import ImageError, read_image, read_thumbnail
from evaluation import saliency
from evaluation.metrics.calibration import fit_referral
from evaluation.reports.html import NOTICE
from evaluation.stats.estimate import Estimates

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_EXAMPLES = 12
PATHS = ("/", "/healthz", "/metrics", "/openapi.json", "/v1/model", "/v1/predict")
THUMBNAIL_SIDE = 160  # pixels
DESCRIPTION = f"""\
Classifies uploaded images. {NOTICE}

`curl -F files=@image.png {{url}}v1/predict` predicts one image. An error has the
body `{{{{"detail": reason}}}}`. If the server has a token, send `Authorization: Bearer TOKEN`.
"""
CLIENT_GONE = 499  # status in the metrics; nobody receives it
DENY_ALL = "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
HEADERS = {
    "Content-Security-Policy": DENY_ALL,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
FIELDS: dict[str, dict[str, Any]] = {
    "files": {"type": "array", "items": {"type": "string", "format": "binary"}, "description":
              "PNG, JPEG, TIFF, BMP, WebP or DICOM files, recognized by their content"},
    "group": {"type": "string", "description":
              "value of `group_attribute` of /v1/model, if the ensemble needs one"},
    "frame": {"type": "integer", "description": "frame number, for files with several frames"},
    "saliency_maps": {"type": "boolean", "default": False, "description":
                      "adds Grad-CAM maps of the ensemble and of each model as PNG files"},
}  # fmt: skip
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
    app = FastAPI(title="Consilium", version="1", lifespan=service.lifespan, docs_url=None,
                  redoc_url=None, openapi_url=None)  # fmt: skip
    app.add_middleware(MetricsAndHeaders, metrics=service.metrics)
    if settings.hosts:
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=settings.hosts)

    @app.exception_handler(ServerBusy)
    async def busy(request: Request, error: ServerBusy) -> Response:
        """Status 503 with the seconds after which to try again."""
        return JSONResponse({"detail": str(error)}, 503, {"Retry-After": str(error.retry_after)})

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        """Status 499, for the metrics only: the client has closed the connection."""
        return Response(status_code=CLIENT_GONE)

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

    @app.get("/openapi.json", include_in_schema=False)
    async def schema(request: Request) -> dict[str, Any]:
        """The OpenAPI schema with the address at which the client sees the server."""
        url, content = str(request.base_url), app.openapi()
        info = {**content["info"], "description": DESCRIPTION.format(url=url)}
        return {**content, "info": info, "servers": [{"url": url}]}

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
        """The web page with the title of the model."""
        text = Path(__file__).with_name("page.html").read_text(encoding="utf-8")
        return page_response(text.replace("{title}", html.escape(service.settings.title)))

    def example_file(index: int) -> Path:
        """The file of an example image; raises HTTPException 404 if there is none."""
        if not 0 <= index < len(examples):
            raise HTTPException(404, f"example {index} does not exist; there are {len(examples)}")
        if not examples[index].is_file():
            raise HTTPException(404, f"example {index} was deleted after the server was started")
        return examples[index]

    @app.get("/examples/{index}", include_in_schema=False, dependencies=token_check)
    def example(index: int) -> Response:
        """The content of an example image file."""
        return Response(example_file(index).read_bytes(), media_type="application/octet-stream")

    @app.get("/examples/{index}/thumbnail", include_in_schema=False, dependencies=token_check)
    def thumbnail(index: int) -> Response:
        """A small PNG of an example image."""
        return Response(read_thumbnail(example_file(index), THUMBNAIL_SIDE), media_type="image/png")


def page_response(text: str) -> HTMLResponse:
    """The response with an HTML page, which may load only its own style, script and server."""
    policy = f"{DENY_ALL}; img-src 'self' data: blob:; connect-src 'self'"
    for tag in ("style", "script"):
        for part in re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.S):
            digest = base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()
            policy += f"; {tag}-src 'sha256-{digest}'"
    return HTMLResponse(text, headers={"Content-Security-Policy": policy})


def require_token(token: str) -> Callable[[Request], None]:
    """A dependency that refuses requests without the token."""

    def check(request: Request) -> None:
        """Raises HTTPException 401 if the request lacks the token."""
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        is_given = hmac.compare_digest(given.strip().encode("latin-1"), token.encode())
        if scheme.lower() != "bearer" or not is_given:
            reason = "missing or wrong token; send it as 'Authorization: Bearer TOKEN'"
            raise HTTPException(401, reason, {"WWW-Authenticate": "Bearer"})

    return check


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
            """Sends a message of the response, with HEADERS in its first one."""
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


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket; raises ValueError if the address is invalid or in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = f"--host {host} --port {port}: {error.args[-1]}"
        raise ValueError(f"{reason}; --port 0 chooses a free port") from error


def serve(predictor: Predictor, settings: ServerSettings, listener: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C, then completes the requests in progress."""
    config = uvicorn.Config(
        create_app(predictor, settings),
        http=TimedProtocol,
        backlog=BACKLOG,
        log_level="warning",
        limit_concurrency=1024,
        timeout_graceful_shutdown=int(2 * settings.limits.timeout),
    )
    # uvicorn raises the signal again after its shutdown: it must not end this process
    handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    try:
        print(greeting(settings, listener), flush=True)
        if not predictor.can_explain:
            print("This export gives no saliency maps; serve its checkpoints to get them.")
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print("stopped; no image was stored", flush=True)


def greeting(settings: ServerSettings, listener: socket.socket) -> str:
    """The text at the start: title, address, and a warning if others need no token."""
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    text = f"{settings.title}: http://{name}:{port}  (API: /openapi.json; stop: Ctrl-C)\n{NOTICE}"
    if not settings.hosts and not settings.token:
        text += (f"\nWarning: anyone who can reach port {port} can use the server. Set a token "
                 f"with --token or {TOKEN_VARIABLE}.")  # fmt: skip
    return text


def default_title(model: Path) -> str:
    """The title of a page: `demo ensemble` for runs/demo/ensemble, else the run folder's name."""
    folder = run_folder_of(model).resolve()
    return f"{folder.parent.name} ensemble" if folder.name == "ensemble" else folder.name


def referral_threshold(model: Path, predictor: Predictor, risk: float) -> float:
    """The probability above which the error rate on the val split is at most `risk`."""
    return fit_referral(val_table(model, predictor, "--refer-risk"), risk)


def find_examples(folder: Path | None, model: Path) -> list[Path]:
    """The first MAX_EXAMPLES readable image files in a folder and its subfolders.

    If the folder contains images of the model's data, only those of the test split.
    """
    if folder is None:
        return []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    splits = data_splits(model)
    if known := [path for path in files if path.resolve() in splits]:
        files = [path for path in known if splits[path.resolve()] == "test"]
    examples = list(islice(filter(is_readable, files[:200]), MAX_EXAMPLES))
    if not examples:
        which = "test images of the model" if known else "readable images"
        raise ValueError(f"--examples {folder}: contains no {which}")
    return examples


def data_splits(model: Path) -> dict[Path, str]:
    """The split of each image of a model's data; empty if its run folder names no data."""
    config = run_folder_of(model) / "config.yaml"
    if not config.is_file():
        return {}
    try:
        table = data_config.load_datamodule([str(config)]).load_manifest().table
    except (OSError, ValueError):  # the data are on another machine
        return {}
    paths = (Path(path).resolve() for path in table["path"])
    return dict(zip(paths, table["split"], strict=True))


def is_readable(path: Path) -> bool:
    """Whether a file is an image that can be decoded."""
    with suppress(ImageError):
        read_image(path)
        return True
    return False


def pointing_scores(model: Path) -> Estimates:
    """Pointing game estimates of Grad-CAM from the model's experiment, by member or `ensemble`."""
    run = run_folder_of(model).resolve()
    folders = [parent / "saliency" / run.name for parent in (run.parent, run.parent.parent)]
    folder = next((f for f in folders if (f / saliency.FILE).is_file()), None)
    results = saliency_evaluation.read_results(folder) if folder else []
    return {
        r.member.partition(" (")[0]: r.estimates["pointing"]
        for r in results
        if r.method == "GradCAM"
    }
