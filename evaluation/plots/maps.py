"""Heat maps over pictures: colors that color-blind readers can tell apart, and panels of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from evaluation.plots.style import panels

SHARE = 0.65  # of the color where the map is 1; where it is 0 the picture is bare
TOP = 0.85  # the brightest end of the colors cannot be told from bright bone
SIDE = 2.9  # inches of a panel's picture
LINES = 7  # of a caption, at most
WIDTH = 36  # letters of its line
COLUMNS = 4  # pictures side by side, at most


@dataclass(frozen=True)
class Shown:
    """One picture of a panel: what stands above and below it, and its map, if it has one."""

    title: str
    caption: str = ""
    heat: np.ndarray | None = None


def colored(heat: np.ndarray) -> np.ndarray:
    """A map from 0 to 1 as RGB (H, W, 3): dark over red to orange, lighter means more."""
    shades = colormaps["inferno"](np.clip(heat, 0.0, 1.0) * TOP)
    return np.asarray(np.rint(shades[..., :3] * 255), dtype=np.uint8)


def overlay(picture: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The map over a gray or RGB picture of the same height and width, as RGB uint8."""
    if picture.shape[:2] != heat.shape:
        raise ValueError(f"the picture is {picture.shape[:2]}, the map {heat.shape}")
    share = SHARE * np.clip(heat, 0.0, 1.0)[..., None]
    mixed = (1 - share) * rgb(picture) + share * colored(heat)
    return np.asarray(np.rint(mixed), dtype=np.uint8)


def rgb(picture: np.ndarray) -> np.ndarray:
    """Gray repeated three times, RGB as it is."""
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=2)


def panel(picture: np.ndarray, shown: Sequence[Shown]) -> Drawing:
    """One picture, alone or under a map, once for each of `shown`, with titles and captions."""
    return gallery([picture] * len(shown), shown)


def gallery(pictures: Sequence[np.ndarray], shown: Sequence[Shown]) -> Drawing:
    """Pictures of one shape, alone or under their maps, with titles and captions."""
    rows = -(-len(shown) // COLUMNS)
    columns = -(-len(shown) // rows)
    height = SIDE * np.clip(pictures[0].shape[0] / pictures[0].shape[1], 0.4, 1.8)
    most = max(len(_lines(each.caption)) for each in shown)
    figure, axes = panels(SIDE * columns, (height + 0.35 + 0.17 * most) * rows, rows, columns)
    for at, picture, one in zip(axes, pictures, shown, strict=False):
        _draw(at, picture, one)
    for spare in axes[len(shown) :]:
        spare.set_axis_off()
    figure.supxlabel("White line: half of the map's peak.", x=0.005, ha="left", fontsize=7)
    return figure


def _draw(axes: Axes, picture: np.ndarray, one: Shown) -> None:
    seen = rgb(picture) if one.heat is None else overlay(picture, one.heat)
    axes.imshow(seen, interpolation="nearest")
    if one.heat is not None and one.heat.max() > 0:
        # the line at half of the peak can be seen without any color
        axes.contour(one.heat, [0.5 * one.heat.max()], colors="white", linewidths=0.9)
    axes.set_anchor("W")  # text beside a narrow picture then has the whole column's width
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(
        "\n".join(wrap(one.title, 32, max_lines=2, placeholder=" …")), loc="left", fontsize=9, pad=5
    )
    axes.set_xlabel("\n".join(_lines(one.caption)), loc="left", fontsize=8)


def _lines(caption: str) -> list[str]:
    """The caption's lines, each part on its own; … says that more was cut."""
    lines = [line for part in caption.split("\n") for line in wrap(part, WIDTH)]
    return lines if len(lines) <= LINES else [*lines[: LINES - 1], f"{lines[LINES - 1]} …"]
