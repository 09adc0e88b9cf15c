"""Sparse members beside their controls: each trained as the first of its members, all weights."""

from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from consilium.experiments.config import MEMBERS, ExperimentConfig
from consilium.experiments.plan import rounds
from consilium.experiments.results import Runs, table_of
from consilium.experiments.sections.seeds_folds import of_seed, together
from evaluation import sparsity
from evaluation.files import read_json
from evaluation.plots.sparse_figures import Arm, costs
from evaluation.predictions import PredictionTable, align
from evaluation.reports import html
from evaluation.stats.paired_tests import differences, mean_differences

COMPARED = ("accuracy", "balanced_accuracy", "nll")
ZEROS = "weights_zero_fraction"
SAVED = (ZEROS, "macs_theoretical_ratio", "latency_ratio_measured")
LISTED = 20  # changed decisions of a pair on the page; the file has them all
NOTE = (
    "Sparse minus control on the same images. The control is trained as the first of the members "
    "that it is the control of, with all weights: beside that one the difference is what sparsity "
    "costs, beside one of other stages or rates it also holds what those change. The dense stage "
    "is no baseline, as the second stage trains on. Zeros: share of all weights. MACs: share of "
    "the multiply-accumulates that are not by a zero, on paper; time beside the dense model is "
    "null unless it was measured."
)
CAPTION = (
    "Right of the line the sparse model is better. Lines are 95 % intervals; small marks are the "
    "runs of an arm, by seed or fold; the large one is of all of them, once all are done."
)
SEEDS = (
    "Sparse minus control, the mean over seeds of the paired difference. Intervals: test patients, "
    "redrawn for all seeds at once; the trained models are taken as they are."
)


@dataclass(frozen=True)
class Beside:
    """What was found of the sparse members of a study that are done beside their controls.

    Args:
        pairs: runs of sparse members and of their controls.
        gaps: see `gaps`.
        means: see `means`.
        changed: see `changed`.
    """

    pairs: list[tuple[str, str]]
    gaps: pd.DataFrame
    means: pd.DataFrame
    changed: pd.DataFrame


def beside(study: ExperimentConfig, runs: Runs, folder: Path) -> Beside:
    """All of it, for the page and for the tables."""
    found = pairs(study, runs)
    return Beside(found, gaps(found, folder), means(study, found, folder), changed(found, folder))


def of_controls(study: ExperimentConfig) -> list[tuple[str, str]]:
    """Sparse members with their controls."""
    return [(name, control) for control, of in study.controls.items() for name in of]


def pairs(study: ExperimentConfig, runs: Runs) -> list[tuple[str, str]]:
    """Runs of sparse members and of their controls, as far as both are done."""
    every = [
        (name + each.suffix, control + each.suffix)
        for each in rounds(study)
        for name, control in of_controls(study)
    ]
    return [(sparse, control) for sparse, control in every if {sparse, control} <= runs.keys()]


def gaps(found: list[tuple[str, str]], folder: Path) -> pd.DataFrame:
    """One row a pair: zeros, theoretical cost, and the paired differences."""
    rows = []
    for sparse, control in found:
        first, second = align(_both(sparse, control, folder))
        gap = differences(first, second)
        said = folder / MEMBERS / sparse / sparsity.FILE
        known = read_json(said) if said.is_file() else {}
        facts = {name: known.get(name) for name in SAVED}
        figures = {metric: gap[metric].figure for metric in COMPARED}
        rows.append({"sparse": sparse, "control": control, **facts, **figures})
    return pd.DataFrame(rows)


def changed(found: list[tuple[str, str]], folder: Path) -> pd.DataFrame:
    """One row a pair and image that the two decide otherwise."""
    each = {
        (sparse, control): sparsity.decisions(*_both(sparse, control, folder))
        for sparse, control in found
    }
    if not each:
        return pd.DataFrame()
    return pd.concat(each, names=["sparse", "control"]).droplevel(2).reset_index()


def over_seeds(study: ExperimentConfig, whole: pd.DataFrame) -> pd.DataFrame:
    """`means` where they are of several seeds."""
    return whole if len(study.seeds) > 1 else pd.DataFrame()


def means(study: ExperimentConfig, found: list[tuple[str, str]], folder: Path) -> pd.DataFrame:
    """One row a sparse member of which all runs are done: the mean of its paired differences."""
    done, rows = {run for pair in found for run in pair}, []
    seeds: list[int] | list[None] = study.seeds or [None]
    for name, control in of_controls(study):
        each = [[of_seed(study, run, seed) for run in (name, control)] for seed in seeds]
        asked = {run for both in each for runs in both for run in runs}
        if not asked <= done:
            continue
        gap = mean_differences(
            [(_whole(one, folder), _whole(other, folder)) for one, other in each]
        )
        figures = {metric: gap[metric].figure for metric in COMPARED}
        rows.append({"sparse": name, "control": control, "seeds": len(each), **figures})
    return pd.DataFrame(rows)


def arms(study: ExperimentConfig, each: pd.DataFrame, whole: pd.DataFrame) -> list[Arm]:
    """Every sparse member of which a run is in `gaps`, with its row of `means` if there is one."""
    rows, over, found = _by_pair(each), _by_pair(whole), []
    for name, control in of_controls(study):
        both = [(name + one.suffix, control + one.suffix) for one in rounds(study)]
        own = [rows[pair] for pair in both if pair in rows]
        zeros = [row[ZEROS] for row in own if pd.notna(row[ZEROS])]
        share = sum(zeros) / len(zeros) if zeros else None
        gaps = [row["accuracy"].value for row in own]
        if own:
            accuracy = over.get((name, control), {}).get("accuracy")
            found.append(Arm(name, control, share, gaps, accuracy))
    return found


def sections(study: ExperimentConfig, folder: Path, found: Beside) -> list[html.Section]:
    """All pairs in one table, every arm in one picture, the means over seeds, what each changed."""
    if not found.pairs:
        return []
    drawn = costs(arms(study, found.gaps, found.means))
    page = [_beside(found.gaps), html.Picture(drawn, CAPTION, "Every sparse arm")]
    seeds = over_seeds(study, found.means)
    page += [_seeds(seeds)] if len(seeds) else []
    page.append(_changed(len(found.changed)))
    for sparse, control in found.pairs:
        page.append(html.Text("", f"{sparse} against {control}"))
        page += sparsity.against_control(*_both(sparse, control, folder), listed=LISTED)
    return page


def _by_pair(rows: pd.DataFrame) -> dict[tuple[str, str], dict[Hashable, Any]]:
    return {(row["sparse"], row["control"]): row for row in rows.to_dict("records")}


def _beside(each: pd.DataFrame) -> html.Section:
    rows: list[tuple[html.Cell, ...]] = [
        (
            row["sparse"],
            row["control"],
            *(row[name] if pd.notna(row[name]) else None for name in SAVED),
            *(html.Gap(row[metric]) for metric in COMPARED),
        )
        for row in each.to_dict("records")
    ]
    columns = ("sparse", "control", "zeros", "MACs", "time, measured", *COMPARED)
    return html.Table(columns, rows, "Sparse against dense", NOTE)


def _seeds(whole: pd.DataFrame) -> html.Section:
    rows: list[tuple[html.Cell, ...]] = [
        (row["sparse"], row["control"], row["seeds"], *(html.Gap(row[m]) for m in COMPARED))
        for row in whole.to_dict("records")
    ]
    return html.Table(("sparse", "control", "seeds", *COMPARED), rows, "", SEEDS)


def _changed(count: int) -> html.Section:
    said = (
        f"{count:,} decisions changed, all pairs together; results/changed.csv holds each of them."
    )
    return html.Text(said if count else "No decision changed.")


def _both(sparse: str, control: str, folder: Path) -> tuple[PredictionTable, PredictionTable]:
    return table_of(folder / MEMBERS / sparse), table_of(folder / MEMBERS / control)


def _whole(runs: list[str], folder: Path) -> PredictionTable:
    """What the runs of a seed said of all folds."""
    return together([table_of(folder / MEMBERS / run) for run in runs])
