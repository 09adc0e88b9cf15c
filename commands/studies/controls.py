"""Sparse members beside their controls, which were trained the same way with all weights."""

from pathlib import Path

import pandas as pd

from commands.studies.file import MEMBERS, Study
from commands.studies.results import Runs, table_of
from commands.studies.runs import rounds
from evaluation import report, sparsity
from evaluation.comparison import differences
from evaluation.files import read_json
from evaluation.table import align

COMPARED = ("accuracy", "balanced_accuracy", "nll")
NOTE = (
    "Sparse minus control on the same images, which is what sparsity costs; the dense stage is no "
    "baseline, as the second stage trains on. Zeros: share of all weights. MACs: share of the "
    "multiply-accumulates that are not by a zero, on paper; time beside the dense model is null "
    "unless it was measured."
)


def pairs(study: Study, runs: Runs) -> list[tuple[str, str]]:
    """Runs of sparse members and of their controls, as far as both are done."""
    every = [
        (name + each.suffix, control + each.suffix)
        for each in rounds(study)
        for control, of in study.controls.items()
        for name in of
    ]
    return [(sparse, control) for sparse, control in every if {sparse, control} <= runs.keys()]


def gaps(found: list[tuple[str, str]], folder: Path) -> pd.DataFrame:
    """One row a pair: zeros, theoretical cost, and the paired differences."""
    rows = []
    for sparse, control in found:
        first, second = align([table_of(folder / MEMBERS / name) for name in (sparse, control)])
        gap = differences(first, second)
        said = folder / MEMBERS / sparse / sparsity.FILE
        known = read_json(said) if said.is_file() else {}
        names = ("weights_zero_fraction", "macs_theoretical_ratio", "latency_ratio_measured")
        facts = {name: known.get(name) for name in names}
        figures = {metric: gap[metric].figure for metric in COMPARED}
        rows.append({"sparse": sparse, "control": control, **facts, **figures})
    return pd.DataFrame(rows)


def sections(found: list[tuple[str, str]], folder: Path) -> list[report.Section]:
    """All pairs in one table, then what each changed."""
    if not found:
        return []
    rows: list[tuple[report.Cell, ...]] = [
        (
            row["sparse"],
            row["control"],
            *(row[name] for name in ("weights_zero_fraction", "macs_theoretical_ratio")),
            row["latency_ratio_measured"],
            *(report.Gap(row[metric]) for metric in COMPARED),
        )
        for row in gaps(found, folder).to_dict("records")
    ]
    columns = ("sparse", "control", "zeros", "MACs", "time, measured", *COMPARED)
    page: list[report.Section] = [report.Table(columns, rows, "Sparse against dense", NOTE)]
    for sparse, control in found:
        tables = [table_of(folder / MEMBERS / name) for name in (sparse, control)]
        page.append(report.Text("", f"{sparse} against {control}"))
        page += sparsity.against_control(*tables)
    return page
