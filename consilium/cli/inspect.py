"""consilium inspect: what a checkpoint says of itself, and whether its weights are those it states.

Nothing in the file is run, no YAML and no network is needed. Of an ensemble every member is shown.
The exit code is 1 when a file's weights are not those that it, or its ensemble, states.
"""

import argparse
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import Tensor

from consilium.cli import words
from evaluation.files import read_json
from lightning_modules import checkpoints, model_info, packing

SHORT = 12


@dataclass(frozen=True)
class Inspected:
    """One checkpoint.

    Args:
        path: the file.
        block: what it says of itself, without the hashes of ids.
        training_ids: how many samples it was trained on.
        val_ids: how many samples its epoch was chosen by.
        weights: hash of the weights that are in it.
        intact: whether that is the hash stated, by the file and by an ensemble that names it.
        measured: whether its figures were measured on these weights.
        parameters: of the network.
        macs: of one image, convolutions and matrix products.
        zeros: share of the weights of two and more dimensions that are 0.
        bytes: of the file.
    """

    path: str
    block: dict[str, Any]
    training_ids: int
    val_ids: int
    weights: str
    intact: bool
    measured: bool
    parameters: int
    macs: int
    zeros: float
    bytes: int


def run(argv: list[str]) -> int:
    """Shows every checkpoint; 0 when all weights are those stated."""
    asked = parser().parse_args(argv)
    found = [inspected(path, stated) for path, stated in files(asked.model)]
    if asked.json:
        print(json.dumps([asdict(one) for one in found], indent=2))
    else:
        for one in found:
            show(one, Console(soft_wrap=True))
    return 0 if all(one.intact for one in found) else 1


def parser() -> argparse.ArgumentParser:
    """The arguments of the verb."""
    main = words.parser("inspect", __doc__)
    main.add_argument(
        "model", type=Path, metavar="CKPT|ENSEMBLE", help="checkpoint, run folder or ensemble.json"
    )
    main.add_argument("--json", action="store_true", help="everything as JSON")
    return main


def files(path: Path) -> list[tuple[Path, str | None]]:
    """Checkpoints with the hash that an ensemble states of each."""
    ensemble = path / "ensemble.json" if path.is_dir() else path
    if ensemble.name == "ensemble.json" and ensemble.is_file():
        members = read_json(ensemble)["members"].values()
        return [(ensemble.parent / member["path"], member["weights"]) for member in members]
    return [(path / "best.ckpt" if path.is_dir() else path, None)]


def inspected(path: Path, stated: str | None = None) -> Inspected:
    """Reads one checkpoint, counts and verifies."""
    block, state = checkpoints.read(path)
    weights = checkpoints.weights_hash(state)
    parameters, macs = model_info.cost(block)
    said = {name: value for name, value in vars(block).items() if name not in packing.IDS}
    return Inspected(
        path=path.as_posix(),
        block=said,
        training_ids=len(block.train_ids),
        val_ids=len(block.val_ids),
        weights=weights,
        intact=weights == block.weights and stated in (None, weights),
        measured=weights == block.measured_weights,
        parameters=parameters,
        macs=macs,
        zeros=zeros(state),
        bytes=path.stat().st_size,
    )


def zeros(state: dict[str, Tensor]) -> float:
    """Share of zeros among the weights of two and more dimensions."""
    kernels = [tensor for tensor in state.values() if tensor.ndim > 1]
    empty = sum(int((tensor == 0).sum()) for tensor in kernels)
    return empty / max(1, sum(tensor.numel() for tensor in kernels))


def show(one: Inspected, console: Console) -> None:
    """Facts, then figures of the whole, of each class and of each pair."""
    table = Table(box=None, show_header=False, pad_edge=False, title=one.path, title_justify="left")
    for name, value in facts(one).items():
        table.add_row(name, value)
    console.print(table)
    metrics = one.block["metrics"]
    rates = [name for name in ("recall", "precision") if any(m.startswith(name) for m in metrics)]
    if rates:
        rows = {c: [metrics.get(f"{r}/{c}") for r in rates] for c in one.block["class_names"]}
        console.print(listed("class", rates, rows))
    pairs = {m.split("/", 1)[1]: [v] for m, v in metrics.items() if m.startswith("pair/")}
    if pairs:
        console.print(listed("pair", ["accuracy"], pairs))


def facts(one: Inspected) -> dict[str, str]:
    """What stands in the left and the right column."""
    block = one.block
    arguments, size = block["init_args"], one.parameters * 4 / 1e6
    whole = {name: value for name, value in block["metrics"].items() if "/" not in name}
    state = "as stated" if one.intact else f"NOT those stated ({block['weights'][:SHORT]})"
    on = "on these weights" if one.measured else "on OTHER weights than these"
    fewer = f", {len(block['structure'])} layers with fewer channels" if block["structure"] else ""
    figures = "  ".join(f"{name} {value:.4f}" for name, value in whole.items())
    return {
        "model": f"{block['module']} on {arguments.get('backbone')}",
        "classes": ", ".join(block["class_names"]),
        "weights": f"{one.weights[:SHORT]}, {state}",
        "network": f"{one.parameters:,} parameters ({size:.1f} MB as float32), "
        f"{one.macs / 1e9:.3f} G MACs, {one.zeros:.1%} of the kernels' weights are 0{fewer}",
        "input": seen(block["preprocess"]),
        "data": f"manifest {block['manifest_digest'][:SHORT]}, {one.training_ids:,} samples "
        f"trained on, {one.val_ids:,} chose the epoch",
        "written": f"after epoch {block['epoch']}, {one.bytes / 1e6:.1f} MB, "
        + ", ".join(versions(block["versions"])),
        "val": f"{figures} (measured {on}, no intervals)" if figures else "not measured",
    }


def seen(preprocess: dict[str, Any]) -> str:
    """The settings of a Preprocess that say something."""
    told = {name: value for name, value in preprocess.items() if value not in (None, False, 0)}
    grid = [] if preprocess["clahe"] else ["grid"]
    rest = [f"{name} {value}" for name, value in told.items() if name not in ("size", *grid)]
    return f"{preprocess['size']} px, " + ", ".join(rest)


def versions(then: dict[str, str]) -> list[str]:
    """Package versions at the time of writing, those of today beside them where they differ."""
    now = checkpoints.versions()
    return [
        f"{name} {version}" + ("" if now[name] == version else f" (here {now[name]})")
        for name, version in then.items()
    ]


def listed(what: str, columns: list[str], rows: dict[str, list[float | None]]) -> Table:
    """Figures by class or by pair."""
    table = Table(what, box=None)
    for name in columns:
        table.add_column(name, justify="right")
    for name, values in rows.items():
        table.add_row(name, *("-" if value is None else f"{value:.3f}" for value in values))
    return table
