"""The picture of what sparsity costs: every sparse arm of a study beside its control."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from evaluation.plots import style
from evaluation.stats.estimate import Estimate


@dataclass(frozen=True)
class Arm:
    """A sparse member and its control; differences are sparse minus control.

    Args:
        name: the sparse member.
        control: its control.
        zeros: share of all weights that are 0; None where it is not known.
        runs: difference in accuracy of each run, by seed or fold.
        whole: the same over all runs; None where one of them is not done.
    """

    name: str
    control: str
    zeros: float | None
    runs: Sequence[float]
    whole: Estimate | None

    @property
    def label(self) -> str:
        """What stands beside its row."""
        zeros = "zeros not known" if self.zeros is None else f"{100 * self.zeros:.1f} % zeros"
        return f"{self.name}, {zeros}\nminus {self.control}"


def costs(arms: Sequence[Arm]) -> Drawing:
    """One row an arm: its difference in points with the 95 % interval; right of 0 is better."""
    figure, [axes] = style.panels(7.2, 1.0 + 0.5 * len(arms))
    style.grid(axes)
    axes.axvline(0, color=style.INK, linewidth=0.8)
    for row, arm in enumerate(arms):
        _row(axes, row, arm)
    axes.set_yticks(range(len(arms)), [arm.label for arm in arms])
    axes.set(ylim=(len(arms) - 0.4, -0.6), xlabel="accuracy, sparse minus control, points")
    axes.tick_params(axis="y", length=0)
    return figure


def _row(axes: Axes, row: int, arm: Arm) -> None:
    """The whole as a large mark on its interval, the runs as small marks below it."""
    if len(arm.runs) > 1 or arm.whole is None:
        points = [100 * value for value in arm.runs]
        axes.plot(points, [row + 0.22] * len(points), "o", color=style.color(5), markersize=3.5)
    if arm.whole is None or arm.whole.value is None:
        return
    if arm.whole.low is not None and arm.whole.high is not None:
        ends = [100 * arm.whole.low, 100 * arm.whole.high]
        axes.plot(ends, [row, row], color=style.color(0), linewidth=1.6)
    axes.plot(100 * arm.whole.value, row, "o", color=style.color(0), markersize=7)
