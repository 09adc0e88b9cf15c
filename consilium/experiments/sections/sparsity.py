"""Sparse members compared with their controls, which are trained alike at density 1."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from consilium.experiments.config import MEMBERS, ExperimentConfig
from consilium.experiments.plan import rounds
from consilium.experiments.sections import Tables
from consilium.experiments.sections.seeds_folds import concatenate, runs_by_seed
from evaluation import sparsity
from evaluation.metrics.registry import metric_label, summary_metrics
from evaluation.plots.curves import SparsityCost, sparsity_cost_plot
from evaluation.predictions import align
from evaluation.reports import html
from evaluation.reports.run import read_savings
from evaluation.stats.paired_tests import Differences, mean_paired_differences, paired_differences

ZERO_FRACTION = "weights_zero_fraction"
RATIOS = {
    ZERO_FRACTION: "zeros", "macs_theoretical_ratio": "MACs",
    "latency_ratio_measured": "latency ratio",
}  # fmt: skip
MAX_ROWS = 20  # changed decisions of a pair in the report; the CSV file has all
NOTE = (
    "Sparse minus control on the same images. A control is trained like the first of its members, "
    "with all weights: the difference to that member is the cost of sparsity; to members of other "
    "stages or learning rates, it includes their effect. The dense stage is not a baseline: the "
    "second stage continues training. Zeros: fraction of all weights. MACs: fraction of "
    "multiply-accumulates not by zero, computed. Latency ratio: measured next to the dense model."
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


@dataclass(frozen=True)
class SparsityComparison:
    """Sparse members compared with their controls, as far as both are done."""

    pairs: list[Row]  # two runs, with the ratios of the sparse one
    means: list[Row]  # two members of which all runs are done, over several seeds
    costs: list[SparsityCost]  # rows of the plot
    changed: pd.DataFrame  # per pair and image: different decisions
    sections: list[html.Section]  # of each pair


def compare_with_controls(
    config: ExperimentConfig, folder: Path, tables: Tables
) -> SparsityComparison:
    """Compares each sparse member with its control: a dense member that is trained alike.

    Only runs whose control is done as well. `tables` are the predictions on test by run.
    """
    pairs, means, costs = list[Row](), list[Row](), list[SparsityCost]()
    changed, page = dict[tuple[str, str], pd.DataFrame](), list[html.Section]()
    for name, control in [(n, control) for control, of in config.controls.items() for n in of]:
        runs = [(name + r.suffix, control + r.suffix) for r in rounds(config)]
        finished = [pair for pair in runs if {*pair} <= tables.keys()]
        rows = [_pair_row(pair, folder, tables) for pair in finished]
        mean = _mean_row(config, name, control, rows, tables) if finished == runs else None
        pairs += rows
        means += [mean] if mean and len(config.seeds) > 1 else []
        costs += [_cost(name, control, rows, mean)] if rows else []
        for pair in finished:
            changed[pair] = sparsity.changed_decisions(tables[pair[0]], tables[pair[1]])
            page += _pair_sections(pair, tables, changed[pair])
    decisions = pd.DataFrame()
    if changed:
        decisions = pd.concat(changed, names=["sparse", "control"]).droplevel(2).reset_index()
    return SparsityComparison(pairs, means, costs, decisions, page)


def _pair_row(pair: tuple[str, str], folder: Path, tables: Tables) -> Row:
    """`RATIOS` of the sparse run of a pair, and the differences to its control."""
    savings = read_savings(folder / MEMBERS / pair[0])
    ratios = {name: savings.get(name) for name in RATIOS}
    differences = paired_differences(tables[pair[0]], tables[pair[1]])
    return {"sparse": pair[0], "control": pair[1], **ratios, **_summary_differences(differences)}


def _summary_differences(differences: Differences) -> Row:
    return {m: differences[m].estimate for m in summary_metrics() if m in differences}


def _mean_row(
    config: ExperimentConfig, name: str, control: str, rows: list[Row], tables: Tables
) -> Row:
    """Mean over seeds, of all folds together; the row of a single pair as it is."""
    if len(rows) == 1:
        return rows[0]
    sparse, dense = (
        [concatenate([tables[run] for run in runs]) for runs in runs_by_seed(config, m).values()]
        for m in (name, control)
    )
    pairs = list(zip(sparse, dense, strict=True))
    differences = _summary_differences(mean_paired_differences(pairs))
    return {"sparse": name, "control": control, "seeds": len(pairs), **differences}


def _cost(name: str, control: str, rows: list[Row], mean: Row | None) -> SparsityCost:
    """The plotted row of a sparse member: its runs, and their mean if all are done."""
    zeros = [row[ZERO_FRACTION] for row in rows if row[ZERO_FRACTION] is not None]
    mean_zeros = sum(zeros) / len(zeros) if zeros else None
    values = [row["accuracy"].value for row in rows]
    return SparsityCost(name, control, mean_zeros, values, mean["accuracy"] if mean else None)


def sections(comparison: SparsityComparison) -> list[html.Section]:
    """All pairs in one table and one plot, the means over seeds, and each pair by itself."""
    if not comparison.pairs:
        return []
    means, count = comparison.means, len(comparison.changed)
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
    cells: list[tuple[html.Cell, ...]] = []
    for row in rows:
        differences = [html.SignedEstimate(row[metric]) for metric in metrics]
        cells.append((row["sparse"], row["control"], *map(row.get, labels), *differences))
    columns = ("sparse", "control", *labels.values(), *map(metric_label, metrics))
    return html.Table(columns, cells, heading, note)


def _pair_sections(
    pair: tuple[str, str], tables: Tables, changed: pd.DataFrame
) -> list[html.Section]:
    sparse, control = align([tables[run] for run in pair])
    parts = [
        sparsity.sensitivity_table(sparse, control, "sparse", "control"),
        sparsity.changed_table(changed, len(sparse), "sparse", "control", MAX_ROWS),
    ]
    of = f"{pair[0]} compared with {pair[1]}"
    return [replace(part, heading=f"{of}: {part.heading}") for part in parts]
