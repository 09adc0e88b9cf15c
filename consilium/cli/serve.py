"""consilium serve: a web page and an API that answer with the numbers of the evaluation.

Open the address it prints, drop a film on the page: class, calibrated confidence, each member's
vote, and where they looked. Programs ask POST /v1/predict; /docs says how. Nothing is fetched from
the internet, and no picture is kept. Research use only; not a medical device.
"""

import argparse
import os
import socket
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from consilium.cli import words
from consilium.cli.arguments import device, positive, share
from consilium.inference.export import bundle, parity
from consilium.inference.predictor import Model, load
from consilium.serving.options import TOKEN
from evaluation.files import read_json

BACKENDS = ("torch", "onnxruntime")


def run(argv: list[str]) -> int:
    """Serves until it is told to stop; what was begun is answered first."""
    asked = parser().parse_args(argv)
    running = words.needed("consilium.serving.server", "serve")
    model = model_of(asked.model, asked.backend, asked.device)
    with listening(asked.host, asked.port) as server:
        running.serve(asked, model, server)
    return 0


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = words.parser("serve", __doc__)
    add = main.add_argument
    help_ = "checkpoint, run folder, ensemble.json or a folder of `consilium export`"
    add("model", type=Path, metavar="ENSEMBLE|CKPT", help=help_)
    add("--port", type=int, default=8000, help="0 takes a free one (8000)")
    add("--host", default="127.0.0.1", help="address to listen on; others reach it by 0.0.0.0 "
        "(127.0.0.1: this machine only)")  # fmt: skip
    add("--token", default=os.environ.get(TOKEN, ""), help=f"what callers must know; better given "
        f"as {TOKEN}, which other users of the machine cannot see")  # fmt: skip
    add("--examples", type=Path, metavar="FOLDER", help="pictures that the page offers to click")
    refer = main.add_mutually_exclusive_group()
    help_ = "refer a picture to a person when its confidence is below this"
    refer.add_argument("--refer-below", type=share, metavar="P", help=help_)
    help_ = "the same, at the confidence where val errs no more often than this"
    refer.add_argument("--refer-risk", type=share, metavar="RISK", help=help_)
    help_ = "what computes a checkpoint's votes (torch); an export brings its own"
    add("--backend", choices=BACKENDS, help=help_)
    add("--device", type=device, default="cpu", help="cpu, cuda, cuda:N or auto (cpu)")
    add("--title", default="", help="what the page calls the model (its folder's name)")
    add("--queue", type=positive, default=64, metavar="N", help="pictures that may wait (64)")
    add("--batch", type=positive, default=8, metavar="N", help="pictures that the models are given "
        "together, when so many wait (8); on a GPU more")  # fmt: skip
    add("--max-mb", type=positive, default=64, metavar="MB", help="of a request (64)")
    add("--max-files", type=positive, default=16, metavar="N", help="pictures in a request (16)")
    add("--max-pixels", type=positive, default=50_000_000, metavar="N", help="of one (50 million)")
    add("--timeout", type=positive, default=30, metavar="S", help="for a body, for an answer (30)")
    return main


def model_of(path: Path, backend: str | None, where: torch.device) -> Model:
    """The model that answers; with onnxruntime its votes come from there, its maps from torch."""
    if where.type != "cpu" and (backend == "onnxruntime" or (path / bundle.FILE).is_file()):
        raise ValueError(f"--device {where}: exports and onnxruntime answer on the cpu")
    if (path / bundle.FILE).is_file():
        return export_of(path, backend)
    model = load(path, device=where)
    if backend != "onnxruntime":
        return model
    with tempfile.TemporaryDirectory() as name:
        files = bundle.save(Path(name), "onnx", model)
        other = bundle.load(Path(name))
        parity.refuse("onnx", parity.compare(model, other, parity.generated(4), files))
    pairs = zip(model.members, other.members, strict=True)
    members = [replace(ours, runtime=theirs.runtime) for ours, theirs in pairs]
    return replace(model, members=members)


def export_of(folder: Path, backend: str | None) -> Model:
    """The model of an export, which is answered by what its format needs."""
    kind = str(read_json(folder / bundle.FILE).get("format"))
    own = "onnxruntime" if kind == "onnx" else "torch"
    if backend not in (None, own):
        raise ValueError(f"--backend {backend}: {folder} is an export to {kind}, so {own} answers")
    return bundle.load(folder)


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens; an address that is taken is one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", "") or error
        raise ValueError(f"--host {host} --port {port}: {why}") from None
