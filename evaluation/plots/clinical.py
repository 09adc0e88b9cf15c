"""Plots of clinical use: decision curves, their differences, smooth calibration curves."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.metrics.calibration_slope import ABSENT, calibration_curve
from evaluation.metrics.clinical import Curve, Outcomes, decision_curve
from evaluation.plots import style
from evaluation.predictions import PredictionTable, Tables

WIDTH, HEIGHT = 3.6, 3.4  # inches of a panel
MARGINS = style.Margins(left=0.8, column_gap=0.7)  # net benefits may have four decimals
NUM_BINS = 20  # of histograms of probabilities


def decision_curve_plot(tables: Tables, outcomes: Sequence[str]) -> Figure:
    """Net benefit of each model by threshold, one panel per outcome; the first has a band."""
    curves = {
        outcome: {
            name: decision_curve(table, outcome, has_interval=at == 0)
            for at, (name, table) in enumerate(tables.items())
        }
        for outcome in outcomes
    }
    lines = [style.line_style(style.model_index(name, at)) for at, name in enumerate(tables)]
    fig, axes = _plot_curves(curves, "net benefit", lines)
    labeled = Outcomes.from_table(next(iter(tables.values())).labeled)
    for ax, (outcome, of_models) in zip(axes, curves.items(), strict=True):
        if known := [curve for curve in of_models.values() if curve]:
            x, share = known[0].x, labeled.positive[:, labeled.names.index(outcome)].mean()
            treat_all = share - (1 - share) * x / (1 - x)
            ax.plot(x, treat_all, ":", color=style.DARK, linewidth=1.2, label="treat all")
            highest = [curve.value.max() for curve in known] + [np.nan_to_num(known[0].high).max()]
            top = max(0.01, *map(float, highest))
            ax.set_ylim(-0.2 * top, 1.05 * top)
            style.legend(ax)
    return fig


def net_benefit_difference_plot(tables: Tables, outcomes: Sequence[str]) -> Figure:
    """First minus second of each pair of models by threshold with bands, one panel per outcome."""
    pairs = {f"{a} minus {b}": (a, b) for a, b in combinations(tables, 2)}
    curves = {
        outcome: {n: decision_curve(tables[a], outcome, tables[b]) for n, (a, b) in pairs.items()}
        for outcome in outcomes
    }
    index = {name: style.model_index(name, at) for at, name in enumerate(tables)}
    lines = [style.pair_style(index[a], index[b]) for a, b in pairs.values()]
    fig, axes = _plot_curves(curves, "net benefit, first minus second", lines)
    for ax in axes:
        style.legend(ax)
    return fig


def _plot_curves(
    curves: Mapping[str, Mapping[str, Curve | None]], label: str, lines: Sequence[dict[str, Any]]
) -> tuple[Figure, list[Axes]]:
    """A figure of curves by outcome and name, one panel per outcome; `lines` are their styles."""
    width, columns = WIDTH * max(len(curves), 1.2), len(curves)
    fig, axes = style.subplots(width, HEIGHT, columns=columns, margins=MARGINS)
    axes[0].set_ylabel(label)
    for ax, (outcome, of_outcome) in zip(axes, curves.items(), strict=True):
        style.show_grid(ax)
        style.panel_title(ax, outcome)
        ax.axhline(0, color=style.DARK, linewidth=0.8)
        ax.set_xlabel("threshold probability")
        for line, (name, curve) in zip(lines, of_outcome.items(), strict=True):
            if curve is None:
                _write_why_no_curve(ax)
            else:
                ax.plot(curve.x, curve.value, label=name or "model", **line)
                _plot_band(ax, curve, line["color"])
    return fig, axes


def _write_why_no_curve(ax: Axes) -> None:
    """Writes on an empty panel that no image, or every image, has the outcome."""
    ax.text(0.5, 0.6, ABSENT, ha="center", transform=ax.transAxes, wrap=True)


def _plot_band(ax: Axes, curve: Curve, color: str) -> None:
    ax.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.15, linewidth=0)


def calibration_plot(table: PredictionTable, outcomes: Sequence[str], name: str = "") -> Figure:
    """Smooth calibration curve of each outcome, above histograms of its probability by class."""
    line = style.line_style(style.model_index(name))
    k, all_outcomes = len(outcomes), Outcomes.from_table(table.labeled)
    width, margins = WIDTH * max(k, 1.2), style.Margins(row_gap=0.15)
    fig, axes = style.subplots(width, 4.6, 2, k, height_ratios=(3, 1), margins=margins)
    for upper, lower, outcome in zip(axes[:k], axes[k:], outcomes, strict=True):
        at = all_outcomes.names.index(outcome)
        style.unit_axes(upper, "", "", diagonal=True)
        upper.set_aspect("auto")
        upper.tick_params(labelbottom=False)  # the panel below has the same axis
        style.panel_title(upper, outcome)
        if curve := calibration_curve(table, outcome):
            upper.plot(curve.x, curve.value, **line)
            _plot_band(upper, curve, line["color"])
        else:
            _write_why_no_curve(upper)
        _plot_histograms(lower, all_outcomes.probabilities[:, at], all_outcomes.positive[:, at])
    axes[0].set_ylabel("observed frequency")
    axes[k].set_ylabel("% of images")
    return fig


def _plot_histograms(ax: Axes, p: np.ndarray, positive: np.ndarray) -> None:
    """Histograms of probabilities p (n,): upwards of images with the outcome, downwards without."""
    edges = np.linspace(0, 1, NUM_BINS + 1)
    for rows, sign, color, label in (
        (positive, 1, style.DARK, "with it"), (~positive, -1, style.LIGHT, "without it"),
    ):  # fmt: skip
        counts = np.histogram(np.clip(p[rows], 0, 1), edges)[0]
        percent = sign * 100 * counts / max(rows.sum(), 1)
        ax.stairs(percent, edges, fill=True, color=color, label=label)
    ax.axhline(0, color=style.DARK, linewidth=0.8)
    ax.set(xlim=(-0.01, 1.01), xlabel="predicted probability")
    ax.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    style.legend(ax)
