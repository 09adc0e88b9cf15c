"""The server process: listening socket, referral threshold, example images, and clean shutdown."""

import signal
import socket
from pathlib import Path

import uvicorn

from consilium.inference.predictor import Predictor, run_folder_of
from consilium.serving import TOKEN_VARIABLE
from consilium.serving.app import create_app
from consilium.serving.service import NOTICE, ServerSettings
from datamodules.images import ImageError, read_image
from evaluation.predictions import PredictionTable
from evaluation.results import voters_folder
from evaluation.selective import fit_referral
from evaluation.voters import store

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LOOPBACK = ("127.0.0.1", "::1", "localhost")
MAX_EXAMPLES = 12


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket; an address that is in use or invalid is a ValueError of one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=256)
    except OSError as error:
        reason = error.strerror or str(error)
    except OverflowError as error:
        reason = str(error)
    raise ValueError(f"--host {host} --port {port}: {reason}")


def serve(predictor: Predictor, settings: ServerSettings, listener: socket.socket) -> None:
    """Serves until SIGTERM or Ctrl-C, then completes the requests in progress."""
    config = uvicorn.Config(
        create_app(predictor, settings),
        log_level="warning",
        limit_concurrency=1024,
        timeout_graceful_shutdown=int(2 * settings.limits.timeout),
    )
    # uvicorn raises the signal again after its shutdown: it must not end this process
    handlers = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    try:
        print(greeting(settings, listener), flush=True)
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    print("stopped; no image was stored", flush=True)


def greeting(settings: ServerSettings, listener: socket.socket) -> str:
    """The address, and a warning if the server is open to others without a token."""
    host, port = listener.getsockname()[:2]
    name = f"[{host}]" if ":" in host else host
    lines = [
        f"{settings.title}: http://{name}:{port}  (API: /openapi.json; stop: Ctrl-C)",
        NOTICE,
    ]
    if not settings.hosts and not settings.token:
        lines.append(f"Warning: anyone who can reach port {port} can use the server. Set a token "
                     f"with --token or {TOKEN_VARIABLE}.")  # fmt: skip
    return "\n".join(lines)


def default_title(model: Path) -> str:
    """`demo ensemble` for runs/demo/ensemble, `resnet10t` for runs/demo/members/resnet10t."""
    folder = run_folder_of(model).resolve()
    return f"{folder.parent.name} ensemble" if folder.name == "ensemble" else folder.name


def referral_threshold(model: Path, predictor: Predictor, risk: float) -> float:
    """The probability above which the error rate on the val split is at most `risk`."""
    file = val_table_path(model, predictor)
    table = PredictionTable.read(file)
    if not is_table_of(table, file.parents[1], predictor):
        raise ValueError(
            f"--refer-risk: {file} was not predicted by this model (classes, weights or voter)"
        )
    return fit_referral(table, risk).threshold


def is_table_of(table: PredictionTable, folder: Path, predictor: Predictor) -> bool:
    """Whether the val table of a folder was predicted by this model.

    A voter that was fitted for other members is an error.
    """
    weights = [member.weights_hash for member in predictor.members]
    if (folder / "voter.json").is_file():
        fitted = store.load(folder, weights, predictor.class_names)
        return fitted.name == predictor.ensemble.name
    sources = list(table.meta.get("members", {}).values()) or [table.meta]
    table_weights = [source.get("weights") for source in sources]
    return (table.class_names, table_weights) == (predictor.class_names, weights)


def val_table_path(model: Path, predictor: Predictor) -> Path:
    """The val table in the run folder of a model, or in the folder of the ensemble's voters."""
    folder = run_folder_of(model).resolve()
    candidates = [folder / "predictions" / "val.parquet"]
    voters = voters_folder(folder)
    if len(predictor.members) > 1 and (voters / "voter.json").is_file():
        candidates.append(voters / "predictions" / "val.parquet")
    for file in candidates:
        if file.is_file():
            return file
    raise ValueError(f"--refer-risk: no val predictions in {', '.join(map(str, candidates))}")


def find_examples(folder: Path | None) -> list[Path]:
    """The first readable image files of a folder and its subfolders."""
    if folder is None:
        return []
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    examples = [path for path in files[:200] if _is_readable(path)][:MAX_EXAMPLES]
    if not examples:
        raise ValueError(f"--examples {folder}: contains no readable images")
    return examples


def _is_readable(path: Path) -> bool:
    try:
        read_image(path)
    except ImageError:
        return False
    return True
