"""Where a picture lands in the square that a network sees, and the way back."""

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

Fit = Literal["squash", "letterbox", "crop"]
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Placement:
    """A rectangle of the picture that fills a rectangle of the square, both ``x0, y0, x1, y1``.

    Args:
        source: The part of the picture that is seen.
        target: The part of the square that it fills; the rest of the square is black.
        side: Side of the square.
    """

    source: Box
    target: Box
    side: int

    def forward(self, image: np.ndarray) -> np.ndarray:
        """The square: area average where the picture shrinks, linear where it grows."""
        x0, y0, x1, y1 = self.target
        part = resized(_cut(image, self.source), x1 - x0, y1 - y0)
        if (x0, y0, x1, y1) == (0, 0, self.side, self.side):
            return part
        square = np.zeros((self.side, self.side, *image.shape[2:]), dtype=image.dtype)
        square[y0:y1, x0:x1] = part
        return square

    def backward(self, square: np.ndarray, height: int, width: int) -> np.ndarray:
        """A (side, side) map laid over the picture that it came from; 0 where nothing was seen."""
        x0, y0, x1, y1 = self.source
        out = np.zeros((height, width, *square.shape[2:]), dtype=square.dtype)
        out[y0:y1, x0:x1] = resized(_cut(square, self.target), x1 - x0, y1 - y0)
        return out

    def points(self, points: np.ndarray) -> np.ndarray:
        """(n, 2) places (x, y) of the picture as places of the square; corners map to corners."""
        (x0, y0, x1, y1), (u0, v0, u1, v1) = self.source, self.target
        scale = np.array([(u1 - u0) / (x1 - x0), (v1 - v0) / (y1 - y0)])
        return np.asarray((np.asarray(points) - (x0, y0)) * scale + (u0, v0))


def place(box: Box, side: int, fit: Fit, shortest: int) -> Placement:
    """How the part ``box`` of a picture goes into a square.

    ``shortest`` only matters for ``crop``: the length that the shorter side would have; what
    lies outside the middle ``side`` of it is not seen.
    """
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    whole = (0, 0, side, side)
    if fit == "squash":
        return Placement(box, whole, side)
    if fit == "letterbox":
        return Placement(box, _inside(width, height, side), side)
    cut = max(1, min(width, height) * side // shortest)
    left, top = x0 + (width - cut) // 2, y0 + (height - cut) // 2
    return Placement((left, top, left + cut, top + cut), whole, side)


def circle_box(image: np.ndarray, threshold: int = 12) -> Box:
    """The rectangle around the bright disc of a fundus picture; all of it when it is dark.

    Rows and columns count when a fiftieth of them is brighter than the threshold, so that a
    single bright speck in the black surround does not.
    """
    height, width = image.shape[:2]
    step = max(1, min(height, width) // 256)
    small = image[::step, ::step]
    bright = (small if small.ndim == 2 else small.max(axis=2)) > threshold
    columns, rows = np.flatnonzero(bright.mean(0) > 0.02), np.flatnonzero(bright.mean(1) > 0.02)
    if not len(columns) or not len(rows):
        return 0, 0, width, height
    right, bottom = (int(columns[-1]) + 1) * step, (int(rows[-1]) + 1) * step
    return int(columns[0]) * step, int(rows[0]) * step, min(right, width), min(bottom, height)


def resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Area average where it shrinks, linear where it grows."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] > height or image.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method))


def _inside(width: int, height: int, side: int) -> Box:
    longer = max(width, height)
    wide, high = max(1, round(width * side / longer)), max(1, round(height * side / longer))
    left, top = (side - wide) // 2, (side - high) // 2
    return left, top, left + wide, top + high


def _cut(image: np.ndarray, box: Box) -> np.ndarray:
    x0, y0, x1, y1 = box
    return image[y0:y1, x0:x1]
