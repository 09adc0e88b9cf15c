"""Sparse members beside their controls: each trained as the first of its members, all weights."""

from pathlib import Path

import pandas as pd

from commands.studies.file import MEMBERS, Study
from commands.studies.repeats import of_seed, together
from commands.studies.results import Runs, table_of
from commands.studies.runs import rounds
from evaluation import report, sparsity
from evaluation.comparison import differences, mean_differences
from evaluation.files import read_json
from evaluation.table import PredictionTable, align

COMPARED = ("accuracy", "balanced_accuracy", "nll")
SAVED = ("weights_zero_fraction", "macs_theoretical_ratio", "latency_ratio_measured")
NOTE = (
    "Sparse minus control on the same images. The control is trained as the first of the members "
    "that it is the control of, with all weights: beside that one the difference is what sparsity "
    "costs, beside one of other stages or rates it holds their part too. The dense stage is no "
    "baseline, as the second stage trains on. Zeros: share of all weights. MACs: share of the "
    "multiply-accumulates that are not by a zero, on paper; time beside the dense model is null "
    "unless it was measured."
)
SEEDS = (
    "Sparse minus control, the mean over seeds of the paired difference. Intervals: test patients, "
    "redrawn for all seeds at once; the trained models are taken as they are."
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
        facts = {name: known.get(name) for name in SAVED}
        figures = {metric: gap[metric].figure for metric in COMPARED}
        rows.append({"sparse": sparse, "control": control, **facts, **figures})
    return pd.DataFrame(rows)


def over_seeds(study: Study, found: list[tuple[str, str]], folder: Path) -> pd.DataFrame:
    """One row a sparse member of which all seeds are done: the mean of its paired differences."""
    done, rows = {run for pair in found for run in pair}, []
    for name, control in [(name, control) for control, of in study.controls.items() for name in of]:
        each = [[of_seed(study, run, seed) for run in (name, control)] for seed in study.seeds]
        asked = {run for both in each for runs in both for run in runs}
        if len(each) < 2 or not asked <= done:
            continue
        gap = mean_differences(
            [(_whole(one, folder), _whole(other, folder)) for one, other in each]
        )
        figures = {metric: gap[metric].figure for metric in COMPARED}
        rows.append({"sparse": name, "control": control, "seeds": len(each), **figures})
    return pd.DataFrame(rows)


def _whole(runs: list[str], folder: Path) -> PredictionTable:
    """What the runs of a seed said of all folds."""
    return together([table_of(folder / MEMBERS / run) for run in runs])


def sections(study: Study, runs: Runs, folder: Path) -> list[report.Section]:
    """All pairs in one table, their means over seeds, then what each changed."""
    found = pairs(study, runs)
    if not found:
        return []
    rows: list[tuple[report.Cell, ...]] = [
        (
            row["sparse"],
            row["control"],
            *(row[name] for name in SAVED),
            *(report.Gap(row[metric]) for metric in COMPARED),
        )
        for row in gaps(found, folder).to_dict("records")
    ]
    columns = ("sparse", "control", "zeros", "MACs", "time, measured", *COMPARED)
    page: list[report.Section] = [report.Table(columns, rows, "Sparse against dense", NOTE)]
    means: list[tuple[report.Cell, ...]] = [
        (row["sparse"], row["control"], row["seeds"], *(report.Gap(row[m]) for m in COMPARED))
        for row in over_seeds(study, found, folder).to_dict("records")
    ]
    if means:
        page.append(report.Table(("sparse", "control", "seeds", *COMPARED), means, "", SEEDS))
    for sparse, control in found:
        tables = [table_of(folder / MEMBERS / name) for name in (sparse, control)]
        page.append(report.Text("", f"{sparse} against {control}"))
        page += sparsity.against_control(*tables)
    return page
