"""Sparse members compared with their controls, which are trained alike at density 1."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from consilium.experiments.config import MEMBERS, ExperimentConfig
from consilium.experiments.plan import rounds, seeds_or_none
from consilium.experiments.sections.seeds_folds import concatenate, runs_of_seed
from evaluation import sparsity
from evaluation.files import read_json
from evaluation.metrics.registry import metric_label, summary_metrics
from evaluation.plots.curves import SparsityCost, sparsity_cost_plot
from evaluation.predictions import PredictionTable, align
from evaluation.reports import html
from evaluation.stats.paired_tests import (
    Differences,
    mean_paired_differences,
    paired_differences,
)

ZERO_FRACTION = "weights_zero_fraction"
RATIOS = {
    ZERO_FRACTION: "zeros", "macs_theoretical_ratio": "MACs",
    "latency_ratio_measured": "latency ratio",
}  # fmt: skip
MAX_ROWS = 20  # changed decisions of a pair in the report; the CSV file has all
NOTE = (
    "Sparse minus control on the same images. A control is trained like the first of its members, "
    "with all weights: compared with that member, the difference is the cost of sparsity; compared "
    "with members of other stages or learning rates, it includes their effect. The dense stage is "
    "not a baseline, because the second stage continues training. Zeros: fraction of all weights. "
    "MACs: fraction of multiply-accumulates that are not by zero, computed. Latency ratio: "
    "measured next to the dense model, a dash if it was not measured."
)
PLOT_CAPTION = (
    "Right of the line the sparse model is better. Lines are 95 % confidence intervals. Small "
    "markers are runs (seeds or folds); the large marker is all runs together, once all are done."
)
SEEDS_NOTE = (
    "Sparse minus control, mean over seeds of the paired difference. Intervals are over test "
    "patients, resampled for all seeds at once, for these trained models."
)
Row = dict[str, Any]  # `sparse`, `control`, and estimates of differences by metric
Tables = Mapping[str, PredictionTable]


@dataclass(frozen=True)
class SparsityComparison:
    """Sparse members compared with their controls, as far as both are done."""

    pairs: list[Row]  # two runs, with the ratios of the sparse one
    means: list[Row]  # two members of which all runs are done, over these
    costs: list[SparsityCost]  # rows of the plot
    changed: pd.DataFrame  # per pair and image: different decisions
    sections: list[html.Section]  # of each pair


def compare_with_controls(
    config: ExperimentConfig, folder: Path, tables: Tables
) -> SparsityComparison:
    """Every comparison of a sparse member with its control; each pair is resampled once."""
    comparison = SparsityComparison([], [], [], pd.DataFrame(), [])
    changed = dict[tuple[str, str], pd.DataFrame]()
    for name, control in [(n, control) for control, of in config.controls.items() for n in of]:
        runs = [(name + r.suffix, control + r.suffix) for r in rounds(config)]
        finished = [pair for pair in runs if {*pair} <= tables.keys()]
        rows = [_pair_row(pair, folder, tables) for pair in finished]
        comparison.pairs.extend(rows)
        mean = _mean_row(config, name, control, rows, tables) if finished == runs else None
        comparison.means.extend([mean] if mean else [])
        comparison.costs.extend([_cost(name, control, rows, mean)] if rows else [])
        for pair in finished:
            changed[pair] = sparsity.changed_decisions(tables[pair[0]], tables[pair[1]])
            comparison.sections.extend(_pair_sections(pair, tables, changed[pair]))
    if not changed:
        return comparison
    decisions = pd.concat(changed, names=["sparse", "control"]).droplevel(2).reset_index()
    return replace(comparison, changed=decisions)


def _pair_row(pair: tuple[str, str], folder: Path, tables: Tables) -> Row:
    file = folder / MEMBERS / pair[0] / sparsity.SPARSITY_FILE
    measured = read_json(file) if file.is_file() else {}
    ratios = {name: measured.get(name) for name in RATIOS}
    differences = paired_differences(tables[pair[0]], tables[pair[1]])
    return {"sparse": pair[0], "control": pair[1], **ratios, **_estimates(differences)}


def _estimates(differences: Differences) -> Row:
    return {m: differences[m].estimate for m in summary_metrics() if m in differences}


def _mean_row(
    config: ExperimentConfig, name: str, control: str, rows: list[Row], tables: Tables
) -> Row:
    """Mean over seeds, of all folds together; of a single pair its own differences."""
    seeds = seeds_or_none(config)
    row = {"sparse": name, "control": control, "seeds": len(seeds)}
    if len(rows) == 1:
        return row | {metric: rows[0][metric] for metric in summary_metrics() if metric in rows[0]}
    of_seeds = [
        [
            concatenate([tables[run] for run in runs_of_seed(config, member, seed)])
            for member in (name, control)
        ]
        for seed in seeds
    ]
    return row | _estimates(mean_paired_differences([(s, c) for s, c in of_seeds]))


def _cost(name: str, control: str, rows: list[Row], mean: Row | None) -> SparsityCost:
    """The plotted row of a sparse member: its runs, and their mean if all are done."""
    zeros = [row[ZERO_FRACTION] for row in rows if row[ZERO_FRACTION] is not None]
    mean_zeros = sum(zeros) / len(zeros) if zeros else None
    values = [row["accuracy"].value for row in rows]
    return SparsityCost(name, control, mean_zeros, values, mean["accuracy"] if mean else None)


def means_over_seeds(config: ExperimentConfig, comparison: SparsityComparison) -> list[Row]:
    """The means if they are over several seeds."""
    return comparison.means if len(config.seeds) > 1 else []


def sections(config: ExperimentConfig, comparison: SparsityComparison) -> list[html.Section]:
    """All pairs in one table and one plot, the means over seeds, and each pair by itself."""
    if not comparison.pairs:
        return []
    means, count = means_over_seeds(config, comparison), len(comparison.changed)
    text = f"{count:,} decisions changed in all pairs together; see results/changed.csv."
    plot = sparsity_cost_plot(comparison.costs)
    return [
        _table(comparison.pairs, RATIOS, "Sparse minus dense", NOTE),
        html.Plot(plot, PLOT_CAPTION, "Cost of sparsity"),
        *([_table(means, {"seeds": "seeds"}, "", SEEDS_NOTE)] if means else []),
        html.Text(text if count else "No decision changed."),
        *comparison.sections,
    ]


def _table(rows: list[Row], labels: Mapping[str, str], heading: str, note: str) -> html.Table:
    """Sparse member, control, the labeled columns, and the differences of summary metrics."""
    metrics = [metric for metric in summary_metrics() if metric in rows[0]]
    cells: list[tuple[html.Cell, ...]] = [
        (
            *(row[name] for name in ("sparse", "control", *labels)),
            *(html.SignedEstimate(row[metric]) for metric in metrics),
        )
        for row in rows
    ]
    columns = ("sparse", "control", *labels.values(), *map(metric_label, metrics))
    return html.Table(columns, cells, heading, note)


def _pair_sections(
    pair: tuple[str, str], tables: Tables, changed: pd.DataFrame
) -> list[html.Section]:
    sparse, control = align([tables[run] for run in pair])
    return [
        html.Text("", f"{pair[0]} compared with {pair[1]}"),
        sparsity.sensitivity_table(sparse, control, "sparse", "control"),
        sparsity.changed_table(changed, len(sparse), "sparse", "control", MAX_ROWS),
    ]
