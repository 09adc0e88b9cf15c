"""Pictures of predictions: each takes tables or arrays and returns a matplotlib Figure."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.grouping import rows_of
from evaluation.metrics import compute
from evaluation.metrics.calibration import equal_mass, reliability_bins
from evaluation.metrics.ranking import average_precision
from evaluation.plots import style
from evaluation.predictions import PredictionTable
from evaluation.stats.auc import auc
from evaluation.stats.means import mean

Tables = Mapping[str, PredictionTable]


def confusion(table: PredictionTable, title: str = "") -> Figure:
    """Confusion matrix twice: as counts, and as shares of each true class."""
    counts = compute.confusion(table)
    k = len(table.class_names)
    figure, axes = style.panels(2 * max(3.4, 0.62 * k + 1.6), max(3.2, 0.5 * k + 1.6), columns=2)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    names = (table.class_names, table.class_names)
    style.matrix(axes[0], counts, counts / max(counts.max(), 1), *names, "{:,.0f}")
    style.matrix(axes[1], 100 * shares, shares, *names, "{:.1f}")
    for panel in axes:
        panel.set(xlabel="predicted", ylabel="true")
    style.title(axes[0], f"{title} {rows_of(table)}".strip())
    style.title(axes[1], "% of each true class")
    return figure


def roc(table: PredictionTable) -> Figure:
    """ROC of each class against the others: whole, and the corner where decisions are made."""
    known = table.labeled
    figure, axes = style.panels(8.4, 4.2, columns=2)
    scores = known.probabilities
    # of two classes the second says it all: the first is its mirror
    for at in range(len(table.class_names)) if len(table.class_names) > 2 else [1]:
        positive = known.labels == at
        name = f"{table.class_names[at]}  {auc(scores[:, at], positive):.4f}"
        _curves(axes, *roc_curve(scores[:, at], positive), name, at)
    _zoomed(axes)
    style.legend(axes[0], "lower right")
    style.title(axes[0], "ROC, class and area")
    return figure


def roc_compared(tables: Tables, title: str = "macro mean over classes") -> Figure:
    """ROC of several models, averaged over classes at each false positive rate."""
    figure, axes = style.panels(8.4, 4.2, columns=2)
    for at, (name, table) in enumerate(tables.items()):
        fpr, tpr, area = macro_roc(table.labeled)
        _curves(axes, fpr, tpr, f"{name}  {area:.4f}", at)
    _zoomed(axes)
    style.legend(axes[0], "lower right")
    style.title(axes[0], f"ROC, {title}")
    return figure


def precision_recall(tables: Tables) -> Figure:
    """Precision against recall, mean over classes at each recall, and the area."""
    figure, axes = style.panels(4.8, 4.2)
    for at, (name, table) in enumerate(tables.items()):
        recall, precision, area = macro_precision_recall(table.labeled)
        _curves(axes, recall, precision, f"{name}  {area:.4f}".strip(), at)
    style.square(axes[0], "recall", "precision")
    style.legend(axes[0], "lower left")
    style.title(axes[0], "precision and recall, mean over classes")
    return figure


def macro_precision_recall(table: PredictionTable) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean precision over classes at each recall on a fine grid, and mean average precision."""
    points, curves, found = np.linspace(0, 1, 501), [], []
    for c in np.unique(table.labels):
        score, own = table.probabilities[:, c], table.labels == c
        fpr, tpr = roc_curve(score, own)
        hits, alarms = tpr * own.sum(), fpr * (~own).sum()
        precision = hits[1:] / (hits[1:] + alarms[1:])
        reached = np.searchsorted(tpr[1:], points - 1e-12)
        curves.append(precision[np.minimum(reached, len(precision) - 1)])
        found.append(average_precision(score, own))
    return points, np.mean(curves, axis=0), float(np.mean(found))


def roc_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """False and true positive rates at each threshold, ties taken together, from 0 to 1."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.diff(scores[order]) != 0, True)
    hits, false = np.cumsum(positive[order])[last], np.cumsum(~positive[order])[last]
    fpr, tpr = false / max(false[-1], 1), hits / max(hits[-1], 1)
    return np.append(0.0, fpr), np.append(0.0, tpr)


def macro_roc(table: PredictionTable) -> tuple[np.ndarray, np.ndarray, float]:
    """Mean true positive rate over classes on a fine grid, and the mean area."""
    points = np.concatenate([np.linspace(0, 0.05, 501), np.linspace(0.05, 1, 951)])
    scores, curves, found = table.probabilities, [], []
    for c in np.unique(table.labels):
        fpr, tpr = roc_curve(scores[:, c], table.labels == c)
        last = np.searchsorted(fpr, points, side="right") - 1
        curves.append(np.where(fpr[last] == points, tpr[last], np.interp(points, fpr, tpr)))
        found.append(auc(scores[:, c], table.labels == c))
    return points, np.mean(curves, axis=0), float(np.mean(found))


def _curves(axes: list[Axes], x: np.ndarray, y: np.ndarray, name: str, at: int) -> None:
    for panel in axes:
        panel.plot(x, y, color=style.color(at), linestyle=style.dash(at), label=name)


def _zoomed(axes: list[Axes]) -> None:
    style.square(axes[0], "false positive rate", "true positive rate")
    axes[0].plot([0, 1], [0, 1], color=style.FAINT, linewidth=0.8, linestyle=":")
    style.grid(axes[1])
    axes[1].set(xlim=(-0.002, 0.2), ylim=(0.8, 1.004), xlabel="false positive rate")
    style.title(axes[1], "upper left corner")


def reliability(tables: Tables) -> Figure:
    """Confidence against accuracy in equal-mass bins, one panel a table, with its ECE."""
    figure, axes = style.panels(max(4.2, 3.7 * len(tables)), 4.0, columns=len(tables))
    for panel, (name, table) in zip(axes, tables.items(), strict=True):
        _reliability(panel, table.labeled, name)
    axes[0].set_ylabel("accuracy")
    return figure


def _reliability(axes: Axes, table: PredictionTable, name: str) -> None:
    style.square(axes, "confidence", "")
    axes.plot([0, 1], [0, 1], color=style.FAINT, linewidth=0.8, linestyle=":")
    bins = reliability_bins(table.probabilities, table.labels)
    low, high = _ends(table)
    axes.errorbar(
        bins.confidence,
        bins.accuracy,
        yerr=np.clip([bins.accuracy - low, high - bins.accuracy], 0, None),
        fmt="o-",
        markersize=4,
        linewidth=1.0,
        color=style.color(0),
        ecolor=style.FAINT,
        elinewidth=1.0,
    )
    style.title(axes, f"{name}   ECE {bins.ece:.4f}")


def _ends(table: PredictionTable) -> np.ndarray:
    """Both ends (2, bins) of the interval of each bin's accuracy, over its patients."""
    right = table.probabilities.argmax(axis=1) == table.labels
    at, patients = equal_mass(table.probabilities.max(axis=1)), table.patients
    found = [mean(patients[at == k], right[at == k]) for k in np.unique(at)]
    return np.array([[each.low, each.high] for each in found], dtype=float).T


def learning_curves(history: pd.DataFrame) -> Figure:
    """One panel a quantity of `history` (columns `epoch`, `train/loss`, `val/loss`, …)."""
    columns = [c for c in history.columns if "/" in c and history[c].notna().any()]
    quantities = list(dict.fromkeys(c.split("/", 1)[1] for c in columns))
    across = min(3, max(1, len(quantities)))
    down = -(-max(1, len(quantities)) // across)
    figure, axes = style.panels(3.6 * across, 2.8 * down, down, across)
    for panel, quantity in zip(axes, quantities, strict=False):
        _learning(panel, history, quantity, columns)
    for panel in axes[len(quantities) :]:
        panel.set_visible(False)
    return figure


def _learning(axes: Axes, history: pd.DataFrame, quantity: str, columns: list[str]) -> None:
    style.grid(axes)
    for at, column in enumerate(c for c in columns if c.split("/", 1)[1] == quantity):
        known = history[["epoch", column]].dropna()
        part = column.split("/", 1)[0]
        axes.plot(
            known["epoch"],
            known[column],
            label=part,
            color=style.color(at),
            linestyle=style.dash(at),
            marker="o",
            markersize=2.5,
        )
    axes.set(xlabel="epoch")
    style.title(axes, quantity)
    style.legend(axes)
