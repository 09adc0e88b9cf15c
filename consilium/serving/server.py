"""The server itself: from arguments to an application, and its life from start to SIGTERM."""

import argparse
import signal
import socket
from pathlib import Path

import uvicorn

from consilium.inference.predictor import Model, folder_of
from consilium.serving import options
from consilium.serving.app import make
from consilium.serving.service import LOCAL, NOTICE, Settings
from consilium.serving.upload import Limits

STOPS = (signal.SIGTERM, signal.SIGINT)


def settings(asked: argparse.Namespace, model: Model) -> Settings:
    """How the model is served."""
    folder = folder_of(asked.model)
    files = min(asked.max_files, asked.queue)  # more would never find places
    limits = Limits(asked.max_mb << 20, files, asked.max_pixels, float(asked.timeout))
    return Settings(
        title=asked.title or _named(folder),
        refer_below=options.refer_below(asked, model),
        limits=limits,
        places=asked.queue,
        together=asked.batch,
        token=asked.token,
        hosts=list(LOCAL) if asked.host in options.LOOPBACK else [],
        examples=options.examples(asked.examples),
    )


def serve(asked: argparse.Namespace, model: Model, server: socket.socket) -> None:
    """Answers until SIGTERM or Ctrl-C; then takes no more, and answers what it holds."""
    how = settings(asked, model)
    config = uvicorn.Config(
        make(model, how),
        log_level="warning",
        limit_concurrency=1024,
        timeout_graceful_shutdown=2 * asked.timeout,
    )
    before = {each: signal.signal(each, lambda *_: None) for each in STOPS}
    try:
        print(greeting(asked, how, server), flush=True)
        uvicorn.Server(config).run(sockets=[server])
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
    print("stopped; nothing was kept", flush=True)


def greeting(asked: argparse.Namespace, how: Settings, server: socket.socket) -> str:
    """Where it answers, and what whoever started it should know."""
    host, port = server.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    lines = [f"{how.title}: http://{name}:{port}  (API: /docs; stop: Ctrl-C)", NOTICE]
    if not how.hosts and not how.token:
        lines.append(
            f"Anybody who reaches port {port} can ask: --token or {options.TOKEN} locks it."
        )
    return "\n".join(lines)


def _named(folder: Path) -> str:
    """`demo ensemble` for runs/demo/ensemble, `resnet10t` for runs/demo/members/resnet10t."""
    folder = folder.resolve()
    return f"{folder.parent.name} ensemble" if folder.name == "ensemble" else folder.name
