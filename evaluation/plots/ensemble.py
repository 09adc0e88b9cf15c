"""Pictures of an ensemble: what each voter gains, how members differ, who leads where."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.ensemble import EvaluatedVoters
from evaluation.grouping import rows_of
from evaluation.metrics.compute import Estimates
from evaluation.plots import style
from evaluation.predictions import PredictionTable
from evaluation.selective import COVERAGES, risk_coverage
from evaluation.stats.paired_tests import LOWER_IS_BETTER, Difference
from evaluation.voters.learned import PerClass, PerPart
from evaluation.voters.simple import Voter, Weighted

Gains = Mapping[str, Mapping[str, Difference]]


def gains(found: Gains, metrics: Sequence[str] = ("accuracy", "auroc", "nll")) -> Figure:
    """Each voter minus the best member, with its interval; right of the line is better."""
    figure, axes = style.panels(8.4, 1.2 + 0.27 * len(found), columns=len(metrics))
    for at, (panel, metric) in enumerate(zip(axes, metrics, strict=True)):
        _gains(panel, found, metric)
        style.title(panel, f"{metric}, lower is better" if metric in LOWER_IS_BETTER else metric)
        panel.set_yticks(range(len(found)), list(found) if at == 0 else [""] * len(found))
    return figure


def _gains(axes: Axes, found: Gains, metric: str) -> None:
    axes.axvline(0, color=style.INK, linewidth=0.8)
    for row, each in enumerate(found.values()):
        shown = each[metric].figure
        if shown.value is None or shown.low is None or shown.high is None:
            continue
        axes.plot([shown.low, shown.high], [row, row], color=style.color(0), linewidth=1.4)
        axes.plot(shown.value, row, "o", color=style.color(0), markersize=4.5)
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=7.5)
    axes.locator_params(axis="x", nbins=5)
    style.grid(axes)
    if metric in LOWER_IS_BETTER:
        axes.invert_xaxis()


def agreement(members: Mapping[str, PredictionTable]) -> Figure:
    """Share of images on which each two members name the same class, in %."""
    said = np.stack([table.logits.argmax(axis=1) for table in members.values()])
    share = (said[:, None] == said[None, :]).mean(axis=2)
    size = max(3.4, 0.7 * len(said) + 1.6)
    figure, axes = style.panels(size, size - 0.4)
    low = share.min()
    shade = (share - low) / max(1 - low, 1e-9)
    style.matrix(axes[0], 100 * share, 0.75 * shade, list(members), list(members), "{:.1f}")
    return figure


def strengths(members: Mapping[str, Estimates], class_names: Sequence[str]) -> Figure:
    """Recall of each member on each class; the leader of a class is ringed."""
    names = list(members)
    figure, axes = style.panels(max(5.0, 1.3 * len(class_names) + 1.8), 3.4)
    known = [[members[m][f"recall/{c}"].value for c in class_names] for m in names]
    values = np.array(known, dtype=float)  # None becomes NaN
    _strengths(axes[0], values, names)
    for column in range(len(class_names)):
        if np.isfinite(values[:, column]).any():
            leader = int(np.nanargmax(values[:, column]))
            x = column + _offset(leader, len(names))
            axes[0].plot(x, values[leader, column], "o", markersize=11, markerfacecolor="none",
                         markeredgecolor=style.INK, markeredgewidth=0.9)  # fmt: skip
    axes[0].set_xticks(range(len(class_names)), [style.short(c) for c in class_names])
    axes[0].set_ylabel("recall")
    style.legend_beside(axes[0])
    return figure


def _strengths(axes: Axes, values: np.ndarray, names: Sequence[str]) -> None:
    style.grid(axes)
    for at, name in enumerate(names):
        x = np.arange(values.shape[1]) + _offset(at, len(names))
        axes.plot(x, values[at], style.MARKS[at % len(style.MARKS)], label=name, markersize=6,
                  color=style.color(at), linestyle="none")  # fmt: skip


def _offset(at: int, count: int) -> float:
    return (at - (count - 1) / 2) * min(0.16, 0.7 / count)


def diversity(judged: EvaluatedVoters) -> Figure:
    """Each pair of members: how often they differ against their mean accuracy."""
    figure, axes = style.panels(5.4, 3.6)
    style.grid(axes[0])
    for at, (name, pair) in enumerate(judged.pairs.items()):
        both = [judged.members[member]["accuracy"].value or 0.0 for member in name.split(" & ")]
        axes[0].plot(
            100 * (pair.disagreement.value or 0.0),
            np.mean(both),
            style.MARKS[at % len(style.MARKS)],
            color=style.color(at),
            markersize=6.5,
            linestyle="none",
            label=name,
        )
    axes[0].set(
        xlabel=f"{judged.rows} on which the two differ, %", ylabel="mean accuracy of the two"
    )
    style.legend_beside(axes[0])
    axes[0].margins(0.12)
    return figure


def weights(
    voters: Mapping[str, Voter], members: Sequence[str], class_names: Sequence[str]
) -> Figure | None:
    """The weights of each voter that has any, a row a voter, class or part; None if none has."""
    rows: dict[str, np.ndarray] = {}
    for kind, voter in voters.items():
        rows |= _rows(kind, getattr(voter, "rest", voter), class_names)
    if not rows:
        return None
    figure, axes = style.panels(2.8 + 0.95 * len(members), 0.9 + 0.3 * len(rows))
    values = np.stack(list(rows.values()))
    style.matrix(axes[0], 100 * values, values, list(rows), list(members), "{:.0f}")
    axes[0].set_aspect("auto")
    return figure


def _rows(kind: str, voter: Voter, class_names: Sequence[str]) -> dict[str, np.ndarray]:
    if isinstance(voter, Weighted):
        return {kind: voter.weights}
    if isinstance(voter, PerPart):
        return {f"{kind}: {v}": w for v, w in zip(voter.values, voter.weights, strict=True)}
    if isinstance(voter, PerClass):
        return {f"{kind}: {c}": w for c, w in zip(class_names, voter.weights, strict=True)}
    return {}


def risks(tables: Mapping[str, PredictionTable]) -> Figure:
    """Error rate among the images answered, against the share answered."""
    figure, axes = style.panels(7.2, 3.6)
    rows = rows_of(next(iter(tables.values())))
    style.grid(axes[0])
    for at, (name, table) in enumerate(tables.items()):
        known = table.labeled
        curve = risk_coverage(known.probabilities, known.labels)
        axes[0].plot(curve.coverage, curve.risk, color=style.color(at), linestyle=style.dash(at),
                     label=f"{name}  {curve.aurc:.4f}", drawstyle="steps-post")  # fmt: skip
    for coverage in COVERAGES:
        axes[0].axvline(coverage, color=style.FAINT, linewidth=0.7, linestyle=":")
    axes[0].set(xlabel=f"share of {rows} answered", ylabel="error rate among them", xlim=(0, 1.01))
    style.title(axes[0], "risk and coverage, with area")
    style.legend_beside(axes[0])
    return figure
