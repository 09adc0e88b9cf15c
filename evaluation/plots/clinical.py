"""Plots of clinical use: decision curves, their differences, smooth calibration curves."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.metrics.calibration_slope import ABSENT, calibration_curve
from evaluation.metrics.clinical import DecisionCurve, Outcomes, decision_curve
from evaluation.plots import style
from evaluation.predictions import PredictionTable, Tables

WIDTH, HEIGHT = 3.6, 3.4  # inches of a panel
NUM_BINS = 20  # of histograms of probabilities


def decision_curve_plot(tables: Tables, outcomes: Sequence[str]) -> Figure:
    """Net benefit of each model by threshold, one panel per outcome; the first has a band."""
    fig, axes = style.subplots(WIDTH * max(len(outcomes), 1.2), HEIGHT, columns=len(outcomes))
    for ax, outcome in zip(axes, outcomes, strict=True):
        curves = {
            name: decision_curve(table, outcome, has_interval=at == 0)
            for at, (name, table) in enumerate(tables.items())
        }
        _plot_curves(ax, outcome, curves)
        if known := [curve for curve in curves.values() if curve]:
            highest = [curve.value.max() for curve in known] + [np.nan_to_num(known[0].high).max()]
            top = max(0.01, *map(float, highest))
            ax.plot(known[0].thresholds, known[0].treat_all, ":", color=style.DARK, linewidth=1.2,
                    label="treat all")  # fmt: skip
            ax.set_ylim(-0.2 * top, 1.05 * top)
            style.legend(ax)
    axes[0].set_ylabel("net benefit")
    return fig


def net_benefit_difference_plot(
    pairs: Mapping[str, tuple[PredictionTable, PredictionTable]], outcomes: Sequence[str]
) -> Figure:
    """First minus second of each pair of models by threshold with bands, one panel per outcome."""
    fig, axes = style.subplots(WIDTH * max(len(outcomes), 1.2), HEIGHT, columns=len(outcomes))
    for ax, outcome in zip(axes, outcomes, strict=True):
        curves = {name: decision_curve(a, outcome, b) for name, (a, b) in pairs.items()}
        _plot_curves(ax, outcome, curves)
        style.legend(ax)
    axes[0].set_ylabel("net benefit, first minus second")
    return fig


def _plot_curves(ax: Axes, outcome: str, curves: Mapping[str, DecisionCurve | None]) -> None:
    style.show_grid(ax)
    ax.axhline(0, color=style.DARK, linewidth=0.8)
    ax.set_xlabel("threshold probability")
    style.panel_title(ax, outcome)
    for index, (name, curve) in enumerate(curves.items()):
        if curve is None:
            ax.text(0.5, 0.6, ABSENT, ha="center", transform=ax.transAxes, wrap=True)
            return
        line = style.line_style(index)
        ax.plot(curve.thresholds, curve.value, label=name or "model", **line)
        _plot_band(ax, curve.thresholds, curve.low, curve.high, line["color"])


def _plot_band(ax: Axes, x: np.ndarray, low: np.ndarray, high: np.ndarray, color: str) -> None:
    ax.fill_between(x, low, high, color=color, alpha=0.15, linewidth=0)


def calibration_plot(table: PredictionTable, outcomes: Sequence[str]) -> Figure:
    """Smooth calibration curve of each outcome, above histograms of its probability by class."""
    k, all_outcomes = len(outcomes), Outcomes.from_table(table.labeled)
    fig, axes = style.subplots(WIDTH * max(k, 1.2), 4.6, 2, k, height_ratios=(3, 1))
    for upper, lower, outcome in zip(axes[:k], axes[k:], outcomes, strict=True):
        at = all_outcomes.names.index(outcome)
        style.unit_axes(upper, "", "", diagonal=True)
        upper.set_aspect("auto")
        style.panel_title(upper, outcome)
        if curve := calibration_curve(table, outcome):
            upper.plot(curve.predicted, curve.observed, **style.line_style(0))
            _plot_band(upper, curve.predicted, curve.low, curve.high, style.COLORS[0])
        else:
            upper.text(0.5, 0.6, ABSENT, ha="center", transform=upper.transAxes, wrap=True)
        _plot_histograms(lower, all_outcomes.probabilities[:, at], all_outcomes.positive[:, at])
    axes[0].set_ylabel("observed frequency")
    axes[k].set_ylabel("% of images")
    return fig


def _plot_histograms(ax: Axes, p: np.ndarray, positive: np.ndarray) -> None:
    """Probabilities of images with the outcome upwards, of the others downwards."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    for rows, sign, color, label in (
        (positive, 1, style.COLORS[1], "with it"), (~positive, -1, style.COLORS[0], "without it"),
    ):  # fmt: skip
        counts = np.histogram(np.clip(p[rows], 0, 1), edges)[0]
        percent = sign * 100 * counts / max(rows.sum(), 1)
        ax.bar(edges[:-1], percent, 1 / NUM_BINS, align="edge", color=color, label=label)
    ax.axhline(0, color=style.DARK, linewidth=0.8)
    ax.set(xlim=(-0.01, 1.01), xlabel="predicted probability")
    ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    style.legend(ax)
