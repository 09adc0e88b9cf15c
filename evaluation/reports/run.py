"""The report of one run: what it reached, how it learned, where it errs."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation import pruned, sparsity
from evaluation.files import read_json, write_text
from evaluation.plots import curves as drawings
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.results import Results

FILE = "report.html"
MAIN = ("accuracy", "balanced_accuracy", "auroc", "nll")
NEAR = 0.005  # a few numbers are 0 by themselves
RATIOS = (
    "weights_zero_fraction",
    "macs_theoretical_ratio",
    "latency_ratio_measured",
    "energy_ratio_measured",
)


def write_run_report(folder: Path, results: Results, page: Sequence[html.Section]) -> None:
    """Writes report.html of the test split, or report.val.html of another, here val."""
    name = FILE if results.split == "test" else f"report.{results.split}.html"
    html.write_report(folder / name, f"{results.name}: {results.split} split", page)


def write_changed(folder: Path, table: PredictionTable) -> None:
    """changed.csv, or changed.val.csv: each image that control or dense model say otherwise of.

    Of a sparse or pruned run only, and where that model's table is there and of the same images.
    """
    split = table.rows["split"].iloc[0]
    file = folder / (sparsity.CHANGED if split == "test" else f"changed.{split}.csv")
    file.unlink(missing_ok=True)
    for said, *names in ((sparsity.FILE, "sparse", "control"), (pruned.FILE, "pruned", "dense")):
        run = read_json(folder / said).get(names[1]) if (folder / said).is_file() else None
        with suppress(OSError, ValueError):  # the report says which
            if run is not None:
                other = sparsity.of_other(folder, run, table)
                write_text(file, sparsity.decisions(table, other, *names).to_csv(index=False))


def sections(
    folder: Path,
    results: Results,
    tables: Mapping[str, PredictionTable],
    history: Path,
    savings: bool = True,
) -> list[html.Section]:
    """The page from top to bottom; `tables` holds the run's own under "".

    `savings`: whether what the folder says of zeros and channels is of the weights measured.
    """
    saved = [*sparsity.of_run(folder, tables[""]), *pruned.of_run(folder, tables[""])]
    return [
        html.lead(results.name, "accuracy", results.metrics["accuracy"]),
        *notes(results),
        *_members(results),
        html.figures_table({k: f for k, f in results.metrics.items() if k in MAIN}),
        *(saved if savings else []),
        *pictures(tables[""]),
        *_curves(history),
        html.figures_table(results.metrics, "All figures"),
        html.Details(facts(results)),
    ]


def is_of(folder: Path, parameters: int, zeros: float) -> bool:
    """Whether what a folder says of zeros and channels is of weights with so many, and such zeros.

    The dense model that a sparse one was made of lies in the same folder.
    """
    said = said_of(folder)
    same = said.get("parameters", parameters) == parameters
    return bool(same and abs(said.get("weights_zero_fraction", zeros) - zeros) < NEAR)


def said_of(folder: Path) -> dict[str, Any]:
    """pruning.json or sparsity.json of a run folder, empty where there is neither."""
    files = [folder / name for name in (pruned.FILE, sparsity.FILE)]
    return next((read_json(file) for file in files if file.is_file()), {})


def measures(folder: Path) -> dict[str, float | None]:
    """The ratios that results.json states of a sparse or pruned run; null is not measured."""
    said = said_of(folder)
    return {key: said[key] for key in RATIOS} if said else {}


def pictures(table: PredictionTable) -> list[html.Section]:
    """Where it errs, how it separates the classes, whether its confidence can be believed."""
    return [
        html.Picture(drawings.confusion(table), "Rows are the true classes.", "Confusion"),
        html.Picture(drawings.roc(table), "Each class against the others.", "ROC"),
        html.Picture(
            drawings.reliability({"": table}),
            "Bars are 95 % intervals of a bin's accuracy.",
            "Confidence",
        ),
    ]


def notes(results: Results) -> list[html.Section]:
    """Warnings that every report must carry."""
    return [html.Text(str(note)) for note in results.meta.get("notes", [])]


def facts(results: Results) -> dict[str, object]:
    """Hashes, versions and settings, flat."""
    return {k: v for k, v in results.meta.items() if k not in ("members", "notes")}


def _members(results: Results) -> list[html.Section]:
    if not results.others:
        return []
    rows: list[tuple[html.Cell, ...]] = [
        (name, *(metrics[key] for key in MAIN))
        for name, metrics in {results.name: results.metrics, **results.others}.items()
    ]
    return [html.Table(("", *MAIN), rows, "Members", strong=[0])]


def _curves(history: Path) -> list[html.Section]:
    if not history.is_file():
        return []
    drawn = drawings.learning_curves(pd.read_csv(history))
    return [html.Picture(drawn, "One point an epoch.", "Learning curves")]
