"""Plots of predictions and training: functions take tables or arrays and return a Figure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.metrics.calibration import (
    NUM_BINS,
    equal_mass_bins,
    num_plotted_bins,
    reliability_bins,
)
from evaluation.metrics.compute import confusion_matrix
from evaluation.metrics.ranking import average_precision
from evaluation.metrics.registry import matching_specs, metric_label
from evaluation.plots import style
from evaluation.predictions import PredictionTable, Tables, row_unit
from evaluation.stats.auc import auc
from evaluation.stats.estimate import Estimate, mean_estimate

MacroCurve = Callable[[PredictionTable], tuple[np.ndarray, np.ndarray, float]]  # x, y, area
Line = tuple[str, np.ndarray, np.ndarray]  # label, x, y
CORNER = (0.2, 0.8)  # largest false and least true positive rate in the enlarged corner
MIN_IN_LINE = 5  # images in each bin of a reliability plot whose points are joined by a line
LOSSES = {
    "train/loss": "Loss as trained",
    "val/training_loss": "Loss as trained",
    "val/loss": "NLL",
}


def confusion_plot(table: PredictionTable) -> Figure:
    """Confusion matrix as counts, and as percentages of each class."""
    counts = confusion_matrix(table)
    k = len(table.class_names)
    fig, axes = style.subplots(2 * max(3.4, 0.62 * k + 1.6), max(3.2, 0.5 * k + 1.6), columns=2)
    fractions = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = (table.class_names, table.class_names)
    style.annotated_matrix(axes[0], counts, counts / max(counts.max(), 1), *names, "{:,.0f}")
    style.annotated_matrix(axes[1], 100 * fractions, fractions, *names, "{:.1f}")
    for ax in axes:
        ax.set(xlabel="predicted", ylabel="true")
    style.panel_title(axes[0], row_unit(table))
    style.panel_title(axes[1], "% of each true class")
    return fig


def roc_plot(table: PredictionTable) -> Figure:
    """ROC curve of each class against the others, and its upper left corner."""
    labeled, lines = table.labeled, dict[int, Line]()
    scores = labeled.probabilities
    # of two classes, the curve of the first mirrors that of the second
    for c in range(len(table.class_names)) if len(table.class_names) > 2 else [1]:
        positive = labeled.labels == c
        area = style.format_rounded(auc(scores[:, c], positive), len(labeled))
        lines[c] = (f"{table.class_names[c]}  {area}", *roc_curve(scores[:, c], positive))
    return _plot_roc(lines, "ROC, class and AUROC")


def roc_comparison(tables: Tables) -> Figure:
    """ROC curves of several models, averaged over classes at each false positive rate."""
    return _plot_roc(_macro_lines(tables, macro_roc_curve), "ROC, macro mean over classes")


def precision_recall_plot(tables: Tables) -> Figure:
    """Precision-recall curves of several models, averaged over classes at each recall."""
    fig, [ax] = style.subplots(4.8, 4.2, margins=style.Margins())
    _plot_lines([ax], _macro_lines(tables, macro_precision_recall_curve))
    style.unit_axes(ax, "recall", "precision")
    style.legend(ax, "lower left")
    style.panel_title(ax, "precision and recall, mean over classes")
    return fig


def _macro_lines(tables: Tables, macro_curve: MacroCurve) -> dict[int, Line]:
    """The curve of each table by its index for `style.line_style`; the label has the area."""
    lines = {}
    for position, (name, table) in enumerate(tables.items()):
        index, (x, y, area) = style.model_index(name, position), macro_curve(table.labeled)
        lines[index] = (f"{name}  {style.format_rounded(area, len(table.labeled))}".strip(), x, y)
    return lines


def _plot_lines(axes: Sequence[Axes], lines: Mapping[int, Line]) -> None:
    """Plots each line in all axes, in the style of its index."""
    for index, (label, x, y) in lines.items():
        for ax in axes:
            ax.plot(x, y, label=label, **style.line_style(index))


def macro_precision_recall_curve(table: PredictionTable) -> tuple[np.ndarray, np.ndarray, float]:
    """Recalls (501,), mean precision over classes at each, and mean average precision."""
    recalls, curves, areas = np.linspace(0, 1, 501), [], []
    for c in np.unique(table.labels):
        scores, positive = table.probabilities[:, c], table.labels == c
        fpr, tpr = roc_curve(scores, positive)
        true_positives, false_positives = tpr * positive.sum(), fpr * (~positive).sum()
        precision = true_positives[1:] / (true_positives[1:] + false_positives[1:])
        reached = np.searchsorted(tpr[1:], recalls - 1e-12)
        curves.append(precision[np.minimum(reached, len(precision) - 1)])
        areas.append(average_precision(scores, positive))
    return recalls, np.mean(curves, axis=0), float(np.mean(areas))


def roc_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at each distinct score, from 0 to 1."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    true_positives = np.cumsum(positive[order])[last]
    false_positives = np.cumsum(~positive[order])[last]
    fpr = false_positives / max(false_positives[-1], 1)
    tpr = true_positives / max(true_positives[-1], 1)
    return np.append(0.0, fpr), np.append(0.0, tpr)


def macro_roc_curve(table: PredictionTable) -> tuple[np.ndarray, np.ndarray, float]:
    """False positive rates, mean true positive rate over classes at each, and mean AUROC."""
    rates = np.concatenate([np.linspace(0, 0.05, 501), np.linspace(0.05, 1, 951)])
    scores, curves, areas = table.probabilities, [], []
    for c in np.unique(table.labels):
        fpr, tpr = roc_curve(scores[:, c], table.labels == c)
        last = np.searchsorted(fpr, rates, side="right") - 1
        curves.append(np.where(fpr[last] == rates, tpr[last], np.interp(rates, fpr, tpr)))
        areas.append(auc(scores[:, c], table.labels == c))
    return rates, np.mean(curves, axis=0), float(np.mean(areas))


def _plot_roc(lines: Mapping[int, Line], title: str) -> Figure:
    """A figure of ROC curves, with a panel of the upper left corner if a curve is in it."""
    has_corner = any(np.interp(CORNER[0], fpr, tpr) > CORNER[1] for _, fpr, tpr in lines.values())
    columns = 1 + has_corner
    fig, axes = style.subplots(4.2 * columns, 4.2, columns=columns, margins=style.Margins())
    _plot_lines(axes, lines)
    style.unit_axes(axes[0], "false positive rate", "true positive rate", diagonal=True)
    style.legend(axes[0], "lower right")
    style.panel_title(axes[0], title)
    for ax in axes[1:]:
        style.show_grid(ax)
        limits = {"xlim": (-0.002, CORNER[0]), "ylim": (CORNER[1], 1.004)}
        ax.set(**limits, xlabel="false positive rate")
        style.panel_title(ax, "upper left corner")
    return fig


def reliability_caption(tables: Iterable[PredictionTable]) -> str:
    """Sentences for people about the points and bars of `reliability_plot`."""
    bins = sorted({num_plotted_bins(len(table.labeled)) for table in tables})
    return (
        f"{' or '.join(map(str, bins))} bins of equally many images. Bars are 95 % confidence "
        f"intervals of a bin's accuracy. The ECE has {NUM_BINS} bins."
    )


def reliability_plot(tables: Tables) -> Figure:
    """Accuracy against confidence in equal-mass bins, one panel per table, with the ECE."""
    width, columns = max(4.2, 3.7 * len(tables)), len(tables)
    fig, axes = style.subplots(width, 4.0, columns=columns, margins=style.Margins())
    for position, (ax, (name, table)) in enumerate(zip(axes, tables.items(), strict=True)):
        color = style.line_style(style.model_index(name, position))["color"]
        style.unit_axes(ax, "confidence", "", diagonal=True)
        known = table.labeled
        is_correct, patients = known.predictions == known.labels, known.patients
        num_bins = num_plotted_bins(len(known))
        bins = reliability_bins(known.probabilities, known.labels, num_bins)
        bin_of = equal_mass_bins(known.probabilities.max(axis=1), num_bins)
        in_bins = [bin_of == number for number in np.unique(bin_of)]
        intervals = [mean_estimate(patients[inside], is_correct[inside]) for inside in in_bins]
        low, high = np.array([[e.low, e.high] for e in intervals], dtype=float).T
        errors = np.clip([bins.accuracy - low, high - bins.accuracy], 0, None)
        shape = "o-" if bins.count.min() >= MIN_IN_LINE else "o"
        ax.errorbar(bins.confidence, bins.accuracy, errors, fmt=shape, markersize=4, linewidth=1.0,
                    color=color, ecolor=style.LIGHT, elinewidth=1.0)  # fmt: skip
        ece = reliability_bins(known.probabilities, known.labels).ece
        style.panel_title(ax, f"{name}   ECE {style.format_rounded(ece, len(known))}".strip())
    axes[0].set_ylabel("accuracy")
    return fig


def learning_curves(history: pd.DataFrame, name: str = "") -> Figure:
    """One panel per metric of a model's `history` (columns `epoch`, `train/accuracy`, …).

    The loss that is trained, of train and of val, has a panel, and the NLL of val another.
    """
    color = style.line_style(style.model_index(name))["color"]
    columns = [c for c in history.columns if "/" in c and history[c].notna().any()]
    metrics = list(dict.fromkeys(map(_panel_title, columns)))
    num_columns = min(3, max(1, len(metrics)))
    num_rows = -(-max(1, len(metrics)) // num_columns)
    width, height = 3.6 * num_columns, 2.8 * num_rows
    fig, axes = style.subplots(width, height, num_rows, num_columns, margins=style.Margins())
    for ax, metric in zip(axes, metrics, strict=False):
        style.show_grid(ax)
        for index, column in enumerate(c for c in columns if _panel_title(c) == metric):
            known, label = history[["epoch", column]].dropna(), column.split("/", 1)[0]
            line = style.line_style(index) | {"color": color}
            ax.plot(
                known["epoch"] + 1, known[column], label=label, marker="o", markersize=2.5, **line
            )
        ax.set(xlabel="epoch")
        style.panel_title(ax, metric)
        style.legend(ax)
    for unused in axes[len(metrics) :]:
        unused.set_visible(False)
    return fig


def _panel_title(column: str) -> str:
    """The label of a column of history.csv: `Accuracy` of `val/accuracy`."""
    if column in LOSSES:
        return LOSSES[column]
    metric = column.split("/", 1)[1]
    return metric_label(metric) if matching_specs(metric) else metric


@dataclass(frozen=True)
class SparsityCost:
    """Accuracy of a sparse member minus that of its dense control."""

    name: str
    control: str
    zero_fraction: float | None  # fraction of all weights that are 0; None if unknown
    differences: Sequence[float]  # of each run, by seed or fold
    overall: Estimate | None  # over all runs; None if a run is missing

    @property
    def label(self) -> str:
        """Label of the row in `sparsity_cost_plot`."""
        zeros = "unknown" if self.zero_fraction is None else f"{100 * self.zero_fraction:.1f} %"
        return f"{self.name}, zeros: {zeros}\nminus {self.control}"


def sparsity_cost_plot(costs: Sequence[SparsityCost]) -> Figure:
    """One row per sparse member: difference in percentage points with its interval.

    The overall difference is a large marker on its interval, the runs are small ones below.
    """
    fig, [ax] = style.subplots(7.2, 1.0 + 0.5 * len(costs))
    style.show_grid(ax)
    ax.axvline(0, color=style.DARK, linewidth=0.8)
    for row, cost in enumerate(costs):
        overall = cost.overall
        if len(cost.differences) > 1 or overall is None:
            points = [100 * value for value in cost.differences]
            ax.plot(points, [row + 0.22] * len(points), "o", color=style.COLORS[5], markersize=3.5)
        if overall is not None:
            style.plot_estimate(ax, row, overall, scale=100, linewidth=1.6, markersize=7)
    ax.set_yticks(range(len(costs)), [cost.label for cost in costs])
    ax.set(ylim=(len(costs) - 0.4, -0.6), xlabel="accuracy, sparse minus control, points")
    ax.tick_params(axis="y", length=0)
    return fig
