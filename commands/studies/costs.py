"""What each member of a study costs: training time, parameters, multiply-accumulates."""

from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from commands.studies.results import Runs
from evaluation import report, sparsity
from evaluation.files import read_json
from lightning_modules.catalogue import Facts, facts

COLUMNS = ("", "backbone", "parameters", "MACs an image", "pixels", "epochs", "seconds", "zeros")
NOTE = (
    "Parameters and multiply-accumulates are those of the backbone with a two-class head, counted "
    "on paper; seconds are those of training and validation, epoch by epoch, on the machine that "
    "trained it. Zeros: share of all weights; a dash where the member is dense. A council costs "
    "the sum of its members."
)


def costs(runs: Runs, folder: Path) -> pd.DataFrame:
    """One row a member that is done."""
    known: dict[tuple[str, int], Facts] = {}
    rows = [
        _row(folder / name, known) for name in runs if (folder / name / "history.csv").is_file()
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def table(found: pd.DataFrame) -> list[report.Section]:
    """The same for the page."""
    if found.empty:
        return []
    rows = [tuple(None if value != value else value for value in row) for row in found.to_numpy()]
    return [report.Table(COLUMNS, rows, "Cost", NOTE, digits=2)]


def _row(run: Path, known: dict[tuple[str, int], Facts]) -> dict[str, Any]:
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    backbone = config["model"]["init_args"]["backbone"]
    size = config["data"]["init_args"]["preprocess"]["size"]
    about = known.setdefault((backbone, size), facts(backbone, size))
    history = pd.read_csv(run / "history.csv")
    sparse = run / sparsity.FILE
    return {
        "": run.name,
        "backbone": backbone,
        "parameters": about.parameters,
        "MACs an image": about.macs,
        "pixels": size,
        "epochs": len(history),
        "seconds": float(history["seconds"].sum()),
        "zeros": read_json(sparse)["weights_zero_fraction"] if sparse.is_file() else None,
    }
