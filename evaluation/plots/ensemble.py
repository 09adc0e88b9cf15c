"""Plots of an ensemble: gains of voters, diversity of members, recall per class, weights."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from evaluation.ensemble import EvaluatedVoters
from evaluation.metrics.calibration import COVERAGES, risk_coverage
from evaluation.metrics.registry import headline_metrics, metric_label, metric_spec
from evaluation.plots import style
from evaluation.predictions import Tables, row_unit
from evaluation.stats.estimate import Estimates
from evaluation.stats.paired_tests import Differences
from evaluation.voters.registry import voter_spec
from evaluation.voters.store import FittedEnsemble


def gain_plot(gains: Mapping[str, Differences]) -> Figure:
    """Each voter minus the best member, with intervals; right of the line is better."""
    metrics = headline_metrics()
    labels = [voter_spec(name).label for name in gains]
    fig, axes = style.subplots(8.4, 1.2 + 0.27 * len(gains), columns=len(metrics))
    for ax, metric in zip(axes, metrics, strict=True):
        ax.axvline(0, color=style.DARK, linewidth=0.8)
        for row, differences in enumerate(gains.values()):
            if (gain := differences[metric].estimate).low is not None:
                style.plot_estimate(ax, row, gain, linewidth=1.4, markersize=4.5)
        ax.invert_yaxis()
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=7.5)
        ax.locator_params(axis="x", nbins=5)
        style.show_grid(ax)
        better = ""
        if not metric_spec(metric).higher_is_better:
            ax.invert_xaxis()
            better = ", lower is better"
        style.panel_title(ax, metric_label(metric) + better)
        ax.set_yticks(range(len(gains)), labels if ax is axes[0] else [""] * len(gains))
    return fig


def agreement_plot(members: Tables) -> Figure:
    """Percentage of the images on which each two members predict the same class."""
    predictions = np.stack([table.predictions for table in members.values()])
    fraction = (predictions[:, None] == predictions[None, :]).mean(axis=2)
    size = max(3.4, 0.7 * len(members) + 1.6)
    fig, [ax] = style.subplots(size, size - 0.4)
    low = fraction.min()
    shade = 0.75 * (fraction - low) / max(1 - low, 1e-9)
    style.annotated_matrix(ax, 100 * fraction, shade, list(members), list(members), "{:.1f}")
    return fig


def recall_plot(members: Mapping[str, Estimates], class_names: Sequence[str]) -> Figure:
    """Dot plot of each member's recall, one column per class; the best of a class are circled."""
    fig, [ax] = style.subplots(max(5.0, 1.3 * len(class_names) + 1.8), 3.4)
    recalls = [[of[f"recall/{c}"].value for c in class_names] for of in members.values()]
    values = np.array(recalls, dtype=float)  # None becomes NaN
    count, columns = len(members), np.arange(len(class_names))
    offsets = (np.arange(count) - (count - 1) / 2) * min(0.16, 0.7 / count)
    style.show_grid(ax)
    for at, name in enumerate(members):
        point = style.point_style(style.model_index(name, at))
        ax.plot(columns + offsets[at], values[at], label=name, markersize=6, **point)
    best, column = np.nonzero(values == np.fmax.reduce(values, axis=0))
    ax.plot(columns[column] + offsets[best], values[best, column], "o", markersize=11,
            markerfacecolor="none", markeredgecolor=style.DARK, markeredgewidth=0.9)  # fmt: skip
    ax.set_xticks(columns, [style.wrapped_label(c) for c in class_names])
    ax.set_ylabel("recall")
    style.legend_right(ax)
    return fig


def diversity_plot(evaluated: EvaluatedVoters) -> Figure:
    """Mean accuracy of each two members against how often their predictions differ."""
    fig, [ax] = style.subplots(5.4, 3.6)
    style.show_grid(ax)
    positions = {name: at for at, name in enumerate(evaluated.member_metrics)}
    for index, (names, pair) in enumerate(evaluated.diversity.items()):
        pair_names = names.split(" & ")
        members = [evaluated.member_metrics[name] for name in pair_names]
        colors = style.pair_style(*(style.model_index(n, positions[n]) for n in pair_names))
        accuracy = np.mean([metrics["accuracy"].value or 0.0 for metrics in members])
        disagreement = 100 * (pair.disagreement.value or 0.0)
        ax.plot(
            disagreement, accuracy, style.MARKERS[index % len(style.MARKERS)], markersize=9,
            fillstyle="left", color=colors["color"], markerfacecoloralt=colors["gapcolor"],
            markeredgewidth=0, label=names,
        )  # fmt: skip
    ax.set(xlabel=f"{evaluated.rows} with different predictions, %", ylabel="mean accuracy")
    style.legend_right(ax)
    ax.margins(0.12)
    return fig


def member_weights_plot(rows: Mapping[str, np.ndarray], members: Sequence[str]) -> Figure:
    """A matrix of percentages: rows of `member_weight_rows`, columns of members."""
    fig, [ax] = style.subplots(2.8 + 0.95 * len(members), 0.9 + 0.3 * len(rows))
    values = np.stack(list(rows.values()))
    style.annotated_matrix(ax, 100 * values, values, list(rows), list(members), "{:.0f}")
    ax.set_aspect("auto")
    return fig


def member_weight_rows(
    ensembles: Mapping[str, FittedEnsemble], class_names: Sequence[str]
) -> dict[str, np.ndarray]:
    """Member weights (members,) of voters with weights, by `<voter label>: <class or group>`."""
    return {
        f"{voter_spec(name).label}: {row}" if row else voter_spec(name).label: weights
        for name, ensemble in ensembles.items()
        for row, weights in ensemble.voter.weight_rows(class_names).items()
    }


def risk_coverage_plot(tables: Tables) -> Figure:
    """Error rate among the answered images against the fraction that is answered."""
    fig, [ax] = style.subplots(7.2, 3.6)
    style.show_grid(ax)
    for position, (name, table) in enumerate(tables.items()):
        labeled, line = table.labeled, style.line_style(style.model_index(name, position))
        curve = risk_coverage(labeled.probabilities, labeled.labels)
        label = f"{name}  {style.format_rounded(curve.aurc, len(labeled))}"
        ax.step(curve.coverage, curve.risk, label=label, where="post", **line)
    for coverage in COVERAGES:
        ax.axvline(coverage, color=style.LIGHT, linewidth=0.7, linestyle=":")
    unit = row_unit(next(iter(tables.values())))
    ax.set(xlabel=f"fraction of {unit} answered", ylabel="error rate", xlim=(0, 1.01))
    style.panel_title(ax, "risk and coverage, with area under the curve")
    style.legend_right(ax)
    return fig
