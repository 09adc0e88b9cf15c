"""What each member of a study costs: training time, parameters, multiply-accumulates."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from consilium.experiments.results import Runs
from evaluation import sparsity
from evaluation.files import read_json
from evaluation.reports import html
from lightning_modules import checkpoints, model_info

Known = dict[str, tuple[int, int]]
COLUMNS = ("", "backbone", "parameters", "MACs an image", "pixels", "epochs", "seconds", "zeros")
NOTE = (
    "Parameters and multiply-accumulates are those of the network in best.ckpt, counted on paper; "
    "a dash where that file is gone. Seconds are those of training and validation, epoch by "
    "epoch, on the machine that trained it. Zeros: share of all weights; a dash where the member "
    "is dense. An ensemble costs the sum of its members."
)


def costs(runs: Runs, folder: Path) -> pd.DataFrame:
    """One row a member that is done."""
    known: Known = {}
    rows = [
        _row(folder / name, known) for name in runs if (folder / name / "history.csv").is_file()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def table(found: pd.DataFrame) -> list[html.Section]:
    """The same for the page."""
    if found.empty:
        return []
    rows = [tuple(None if value != value else value for value in row) for row in found.to_numpy()]
    return [html.Table(COLUMNS, rows, "Cost", NOTE, digits=2)]


def _counted(file: Path, known: Known) -> tuple[int | None, int | None]:
    """Parameters and MACs of a checkpoint's network; equal networks are counted once."""
    if not file.is_file():
        return None, None
    block, _ = checkpoints.read(file, mapped=True)
    network = repr((block.module, block.init_args, block.structure, block.preprocess["size"]))
    if network not in known:
        known[network] = model_info.cost(block)
    return known[network]


def _row(run: Path, known: Known) -> dict[str, Any]:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    backbone = config["model"]["init_args"]["backbone"]
    size = config["data"]["init_args"]["preprocess"]["size"]
    parameters, macs = _counted(run / "best.ckpt", known)
    history = pd.read_csv(run / "history.csv")
    sparse = run / sparsity.FILE
    return {
        "": run.name,
        "backbone": backbone,
        "parameters": parameters,
        "MACs an image": macs,
        "pixels": size,
        "epochs": len(history),
        "seconds": float(history["seconds"].sum()),
        "zeros": read_json(sparse)["weights_zero_fraction"] if sparse.is_file() else None,
    }
