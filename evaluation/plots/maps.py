"""Saliency maps over images, as arrays and as grids of panels."""

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

from evaluation.plots.style import subplots

MAX_OPACITY = 0.65  # of the color where the map is 1; where it is 0 the image is unchanged
MAX_COLOR = 0.85  # the brightest end of the colormap looks like bright bone
PANEL_INCHES = 2.9
MAX_CAPTION_LINES = 7
CAPTION_WIDTH = 36  # characters of a line
MAX_COLUMNS = 4


@dataclass(frozen=True)
class Panel:
    """Title and caption of one image, and the saliency map (H, W) over it, if any."""

    title: str
    caption: str = ""
    saliency_map: np.ndarray | None = None


def colored_map(saliency_map: np.ndarray) -> np.ndarray:
    """A map with values from 0 to 1 as RGB uint8 (H, W, 3): brighter means larger."""
    colors = colormaps["inferno"](np.clip(saliency_map, 0.0, 1.0) * MAX_COLOR)
    return np.asarray(np.rint(colors[..., :3] * 255), dtype=np.uint8)


def overlay(image: np.ndarray, saliency_map: np.ndarray) -> np.ndarray:
    """A map from 0 to 1 blended over a gray or RGB uint8 image of its size, as RGB uint8."""
    if image.shape[:2] != saliency_map.shape:
        raise ValueError(f"the image is {image.shape[:2]}, the map {saliency_map.shape}")
    opacity = MAX_OPACITY * np.clip(saliency_map, 0.0, 1.0)[..., None]
    blended = (1 - opacity) * to_rgb(image) + opacity * colored_map(saliency_map)
    return np.asarray(np.rint(blended), dtype=np.uint8)


def to_rgb(image: np.ndarray) -> np.ndarray:
    """A grayscale image with three equal channels; an RGB image unchanged."""
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)


def panel_grid(images: Sequence[np.ndarray], panels: Sequence[Panel]) -> Figure:
    """Images of one shape, alone or under their maps, with titles and captions."""
    rows = -(-len(panels) // MAX_COLUMNS)
    columns = -(-len(panels) // rows)
    height = PANEL_INCHES * np.clip(images[0].shape[0] / images[0].shape[1], 0.4, 1.8)
    height += 0.35 + 0.17 * max(len(_caption_lines(panel.caption)) for panel in panels)
    fig, axes = subplots(PANEL_INCHES * columns, height * rows, rows, columns)
    for ax, image, panel in zip(axes, images, panels, strict=False):
        saliency_map = panel.saliency_map
        blended = to_rgb(image) if saliency_map is None else overlay(image, saliency_map)
        ax.imshow(blended, interpolation="nearest")
        if saliency_map is not None and min(saliency_map.shape) > 1 and saliency_map.max() > 0:
            # the line at half of the maximum is visible without any color
            ax.contour(saliency_map, [0.5 * saliency_map.max()], colors="white", linewidths=0.9)
        ax.set_anchor("W")  # text beside a narrow image then has the whole column's width
        ax.set(xticks=[], yticks=[])
        title = wrap(panel.title, 32, max_lines=2, placeholder=" …")
        ax.set_title("\n".join(title), loc="left", fontsize=9, pad=5)
        ax.set_xlabel("\n".join(_caption_lines(panel.caption)), loc="left", fontsize=8)
    for unused in axes[len(panels) :]:
        unused.set_axis_off()
    fig.supxlabel("White line: half of the map's maximum.", x=0.005, ha="left", fontsize=7)
    return fig


def _caption_lines(caption: str) -> list[str]:
    """The caption's lines, wrapped; a trailing … marks that lines were cut."""
    lines = [line for part in caption.split("\n") for line in wrap(part, CAPTION_WIDTH)]
    if len(lines) <= MAX_CAPTION_LINES:
        return lines
    return [*lines[: MAX_CAPTION_LINES - 1], f"{lines[MAX_CAPTION_LINES - 1]} …"]
