"""The common style of all plots: readable in grayscale print and for color-blind readers."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from textwrap import wrap
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context

from evaluation.stats.estimate import Estimate, decimals_of

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
DARK, LIGHT = "#222222", "#B8B8B8"
_members: ContextVar[tuple[str, ...]] = ContextVar("members", default=())
_SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"], "font.size": 9.0, "text.color": DARK,
    "axes.titlesize": 10.0, "axes.titlepad": 8.0, "axes.labelcolor": DARK,
    "axes.edgecolor": "#777777", "axes.linewidth": 0.7,
    "axes.spines.top": False, "axes.spines.right": False,
    "xtick.color": "#555555", "ytick.color": "#555555",
    "grid.color": "#E4E4E4", "grid.linewidth": 0.6,
    "legend.frameon": False, "legend.fontsize": 8.0, "lines.linewidth": 1.6,
}  # fmt: skip


@dataclass(frozen=True)
class Margins:
    """Inches around the panels of a figure, with titles, and axes whose tick labels are numbers."""

    left: float = 0.62  # a label and tick labels of three digits
    right: float = 0.18  # half of the last tick label
    top: float = 0.4  # a title, above a common factor of the tick labels
    bottom: float = 0.5
    column_gap: float = 0.6  # tick labels of six digits
    row_gap: float = 0.9


def subplots(
    width: float, height: float, rows: int = 1, columns: int = 1,
    height_ratios: Sequence[float] | None = None, margins: Margins | None = None,
) -> tuple[Figure, list[Axes]]:  # fmt: skip
    """An empty figure of `width` x `height` inches with its axes, row by row.

    Without `margins`, all text is measured to make room for it, which takes a third of the drawing.
    """
    with context(_SETTINGS):
        fig = Figure(figsize=(width, height), dpi=160, layout=None if margins else "constrained")
        FigureCanvasAgg(fig)
        grid = fig.subplots(rows, columns, squeeze=False, height_ratios=height_ratios)
    if margins:
        _set_margins(fig, margins, rows, columns)
    return fig, [ax for row in grid for ax in row]


def _set_margins(fig: Figure, margins: Margins, rows: int, columns: int) -> None:
    """Places rows x columns of panels within `margins`; matplotlib takes gaps per panel size."""
    width, height = fig.get_size_inches()
    inner_width = width - margins.left - margins.right - (columns - 1) * margins.column_gap
    inner_height = height - margins.bottom - margins.top - (rows - 1) * margins.row_gap
    fig.subplots_adjust(
        left=margins.left / width,
        right=1 - margins.right / width,
        bottom=margins.bottom / height,
        top=1 - margins.top / height,
        wspace=columns * margins.column_gap / inner_width,
        hspace=rows * margins.row_gap / inner_height,
    )


@contextmanager
def member_colors(members: Iterable[str]) -> Iterator[None]:
    """Within it, a member has the same style in all plots; an outer context has priority."""
    token = _members.set(_members.get() or tuple(members))
    try:
        yield
    finally:
        _members.reset(token)


def model_index(name: str, position: int = 0) -> int:
    """Index for `line_style` and `point_style`: one per member in `member_colors`, else `position`.

    A model that is not among the members, such as their ensemble, has the first color.
    """
    members = _members.get()
    return members.index(name) + 1 if name in members else 0 if members else position


def line_style(index: int) -> dict[str, Any]:
    """Keyword arguments of `ax.plot`: color, and dashes that tell lines apart in grayscale."""
    dashes = DASHES[(index + index // len(COLORS)) % len(DASHES)]
    return {"color": COLORS[index % len(COLORS)], "linestyle": dashes}


def pair_style(first: int, second: int) -> dict[str, Any]:
    """Keyword arguments of `ax.plot`: a dashed line that alternates the colors of two models."""
    colors = (COLORS[index % len(COLORS)] for index in (first, second))
    return dict(zip(("color", "gapcolor"), colors, strict=True), linestyle="--")


def point_style(index: int) -> dict[str, Any]:
    """Keyword arguments of `ax.plot`: color and marker of unconnected points."""
    marker = MARKERS[index % len(MARKERS)]
    return {"color": COLORS[index % len(COLORS)], "marker": marker, "linestyle": "none"}


def show_grid(ax: Axes) -> None:
    """Shows a light grid behind the data."""
    ax.grid(visible=True)
    ax.set_axisbelow(True)


def legend(ax: Axes, location: Literal["best", "lower right", "lower left"] = "best") -> None:
    """Adds the legend inside the axes."""
    ax.legend(loc=location, frameon=False, fontsize=8)


def legend_right(ax: Axes) -> None:
    """Adds the legend to the right of the axes, where it covers nothing."""
    ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)


def unit_axes(ax: Axes, x: str, y: str, diagonal: bool = False) -> None:
    """Sets both axes from 0 to 1 with equal scale, labels and a grid."""
    ax.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    show_grid(ax)
    if diagonal:
        ax.plot([0, 1], [0, 1], color=LIGHT, linewidth=0.8, linestyle=":")


def plot_estimate(
    ax: Axes, row: int, e: Estimate, linewidth: float, markersize: float, scale: float = 1.0,
    color: int = 0, marker: int = 0,
) -> None:  # fmt: skip
    """Plots a value as a marker and its interval as a line at height `row`, if known."""
    color %= len(COLORS)
    if e.low is not None and e.high is not None:
        ends = [scale * e.low, scale * e.high]
        ax.plot(ends, [row, row], color=COLORS[color], linewidth=linewidth)
    if e.value is not None:
        ax.plot(scale * e.value, row, MARKERS[marker], color=COLORS[color], markersize=markersize)


def panel_title(ax: Axes, text: str) -> None:
    """Sets a left-aligned title."""
    ax.set_title(text, loc="left", fontsize=10)


def format_rounded(value: float, n: int) -> str:
    """A number with the decimals that n images can distinguish."""
    return f"{value:.{decimals_of(n)}f}"


def wrapped_label(name: str, width: int = 14) -> str:
    """A tick label of at most two lines, broken at spaces or _; … marks that it was cut."""
    lines = [line.replace("_ ", "_") for line in wrap(name.replace("_", "_ "), width)]
    return "\n".join(lines[:2]) + ("…" if len(lines) > 2 else "")


def annotated_matrix(
    ax: Axes, values: np.ndarray, shade: np.ndarray, rows: Sequence[str], columns: Sequence[str],
    number_format: str,
) -> None:  # fmt: skip
    """Plots numbers (rows, columns) over blue cells; `shade`, of that shape, is from 0 to 1."""
    ax.imshow(shade, cmap="Blues", vmin=0, vmax=1.15)
    labels = [wrapped_label(name) for name in columns]
    ax.set_xticks(range(len(columns)), labels, rotation=30, ha="right", rotation_mode="anchor")
    ax.set_yticks(range(len(rows)), [wrapped_label(name, 26) for name in rows])
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    for (row, column), value in np.ndenumerate(values):
        text_color = "white" if shade[row, column] > 0.6 else DARK
        text = number_format.format(value) if np.isfinite(value) else ""
        cell = ax.text(column, row, text, ha="center", va="center", color=text_color, fontsize=8.5)
        cell.set_in_layout(False)  # it is inside of the axes
