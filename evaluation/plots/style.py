"""One look for every picture: restrained, readable in print, safe for color-blind readers."""

from collections.abc import Sequence
from textwrap import wrap
from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.style import context

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A8A00")
DASHES = ("-", "--", "-.", ":")
MARKS = ("o", "s", "^", "D", "v", "P", "X")
INK, FAINT = "#222222", "#B8B8B8"
SHADES = "Blues"
_SETTINGS: dict[str, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9.0,
    "axes.titlesize": 10.0,
    "axes.titlepad": 8.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#777777",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "text.color": INK,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 8.0,
    "lines.linewidth": 1.6,
}


def panels(
    width: float, height: float, rows: int = 1, columns: int = 1
) -> tuple[Figure, list[Axes]]:
    """An empty figure of `width` x `height` inches with its axes, row by row."""
    with context(_SETTINGS):
        figure = Figure(figsize=(width, height), dpi=160, layout="constrained")
        FigureCanvasAgg(figure)
        grid = figure.subplots(rows, columns, squeeze=False)
    return figure, [axes for row in grid for axes in row]


def color(at: int) -> str:
    """The color of series `at`."""
    return COLOURS[at % len(COLOURS)]


def dash(at: int) -> str:
    """The line style of series `at`, so that a gray print can still be read."""
    return DASHES[(at + at // len(COLOURS)) % len(DASHES)]


def grid(axes: Axes) -> None:
    """A faint grid behind the data."""
    axes.grid(visible=True)
    axes.set_axisbelow(True)


def legend(
    axes: Axes, where: Literal["best", "lower right", "lower left", "upper left"] = "best"
) -> None:
    """The legend in the house's size."""
    axes.legend(loc=where, frameon=False, fontsize=8)


def legend_beside(axes: Axes) -> None:
    """The legend to the right of the axes, where it covers nothing."""
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=8)


def square(axes: Axes, x: str, y: str) -> None:
    """Unit square with a faint diagonal-free frame, both axes from 0 to 1."""
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=x, ylabel=y, aspect="equal")
    grid(axes)


def title(axes: Axes, text: str) -> None:
    """A panel's title, set left."""
    axes.set_title(text, loc="left", fontsize=10)


def short(name: str, width: int = 14) -> str:
    """A name that fits beside a tick: broken into at most two lines, then cut."""
    lines = wrap(name, width)
    return "\n".join(lines[:2]) + ("…" if len(lines) > 2 else "")


def matrix(
    axes: Axes,
    values: np.ndarray,
    shade: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    form: str,
) -> None:
    """A table of numbers on a blue ground; `shade` runs from 0 to 1."""
    axes.imshow(shade, cmap=SHADES, vmin=0, vmax=1.15)
    labels = [short(name) for name in columns]
    axes.set_xticks(range(len(columns)), labels, rotation=30, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [short(name, 26) for name in rows])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    for (row, column), value in np.ndenumerate(values):
        ink = "white" if shade[row, column] > 0.6 else INK
        text = form.format(value) if np.isfinite(value) else ""
        axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8.5)
