"""Forest plot of metrics by group of images."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from evaluation.metrics.registry import metric_label
from evaluation.plots import style
from evaluation.subgroups import SIGNIFICANCE_LEVEL, Subgroup


def forest_plot(subgroups: Sequence[Subgroup], metrics: Sequence[str], model: str = "") -> Figure:
    """One panel per metric: its value and interval in each group, a line at that of the first."""
    height = 1.0 + 0.22 * len(subgroups)
    fig, axes = style.subplots(2.6 + 2.1 * len(metrics), height, columns=len(metrics))
    names = [f"{s.name} ({s.patients:,})" if s.attribute else s.name for s in subgroups]
    for ax, metric in zip(axes, metrics, strict=True):
        if (of_all := subgroups[0].metrics[metric].value) is not None:
            ax.axvline(of_all, color=style.DARK, linewidth=0.8)
        for row, s in enumerate(subgroups):
            is_flagged = metric in s.gaps and s.gaps[metric].p_value < SIGNIFICANCE_LEVEL
            color, marker = style.model_index(model), int(is_flagged)
            style.plot_estimate(ax, row, s.metrics[metric], 1.4, 4.5, color=color, marker=marker)
        ax.set_ylim(len(subgroups) - 0.5, -0.5)
        ax.tick_params(axis="y", length=0)
        ax.tick_params(axis="x", labelsize=7.5)
        ax.locator_params(axis="x", nbins=4)
        style.show_grid(ax)
        style.panel_title(ax, metric_label(metric).replace(", ", "\n", 1))
        ax.set_yticks(range(len(names)), names if ax is axes[0] else [""] * len(names))
    return fig
