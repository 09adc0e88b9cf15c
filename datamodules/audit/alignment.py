"""Aligns one image to another by rotation and mirroring, and measures their similarity."""

from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np

_NUM_ANGLES = 256  # angles that are compared
_MIN_CORRELATION = 0.4  # below this correlation a fine alignment cannot make images similar
_MAX_ROTATION = 20.0  # of a duplicate from a multiple of 90 degrees, in degrees


class Alignment(NamedTuple):
    """How the second image is moved onto the first: mirrored first, then rotated."""

    mirrored: bool
    degrees: float


def local_structure(image: np.ndarray, scale: float = 4.0) -> np.ndarray:
    """float32 image without the local brightness and contrast."""
    values = image.astype(np.float32)
    values -= cv2.GaussianBlur(values, (0, 0), scale)
    variance = cv2.GaussianBlur(values * values, (0, 0), 2 * scale)
    return np.asarray(values / np.sqrt(variance + 1.0))


def estimate_alignment(first: np.ndarray, second: np.ndarray) -> Alignment:
    """The best rotation near a multiple of 90 degrees, from the spectra (rings, frequencies)."""
    weight = np.sqrt(np.arange(1, len(first) + 1))[:, None]
    angles = np.arange(_NUM_ANGLES) * 360.0 / _NUM_ANGLES
    allowed = np.abs((angles + 45) % 90 - 45) <= _MAX_ROTATION
    best = (-np.inf, False, 0.0)
    for mirrored in (False, True):
        other = second if mirrored else np.conj(second)
        match = np.fft.irfft((first * other * weight).sum(axis=0), _NUM_ANGLES)
        top = int(np.where(allowed, match, -np.inf).argmax())
        degrees = (top + _subsample_peak(match, top)) * 360.0 / _NUM_ANGLES
        best = max(best, (float(match[top]), mirrored, degrees))
    return Alignment(best[1], (best[2] + 180.0) % 360.0 - 180.0)


def aligned_correlation(first: np.ndarray, second: np.ndarray, alignment: Alignment) -> float:
    """Correlation of the local structure of two squares of the same size within a disc."""
    return _correlation(local_structure(first), local_structure(_apply(second, alignment)))


def detail_similarity(first: np.ndarray, second: np.ndarray, alignment: Alignment) -> float:
    """Mean correlation on three scales of detail after alignment to a fraction of a pixel."""
    first = first.astype(np.float32)
    second = _apply(second, alignment).astype(np.float32)
    if _correlation(local_structure(first), local_structure(second)) > _MIN_CORRELATION:
        second = _refine(first, second)
    scores = []
    for scale in (1.0, 2.0, 4.0):
        blurred = [cv2.GaussianBlur(image, (0, 0), scale / 3) for image in (first, second)]
        scores.append(_correlation(*(local_structure(image, scale) for image in blurred)))
    return float(np.mean(scores))


def _subsample_peak(curve: np.ndarray, top: int) -> float:
    """Offset of the maximum of a parabola through the highest sample and its neighbors."""
    before, peak, after = curve[top - 1], curve[top], curve[(top + 1) % len(curve)]
    return float(np.clip(0.5 * (before - after) / (before - 2 * peak + after - 1e-12), -0.5, 0.5))


def _apply(image: np.ndarray, alignment: Alignment) -> np.ndarray:
    center = ((len(image) - 1) / 2, (len(image) - 1) / 2)
    flipped = np.ascontiguousarray(image[::-1]) if alignment.mirrored else image
    rotation = cv2.getRotationMatrix2D(center, -alignment.degrees, 1)
    return np.asarray(cv2.warpAffine(flipped, rotation, (len(image), len(image))))


def _refine(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The moving image after a small shift and rotation; unchanged if none is found."""
    first, second = (
        cv2.GaussianBlur(local_structure(v, 6.0), (0, 0), 1.0) for v in (fixed, moving)
    )
    mask = _disc(len(fixed)).astype(np.uint8) * 255
    start: Any = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 15, 1e-3)
    try:
        _, motion = cv2.findTransformECC(first, second, start, cv2.MOTION_EUCLIDEAN, stop, mask, 1)
    except cv2.error:
        return moving
    if np.abs(motion - np.eye(2, 3)).max() > len(fixed) / 16:
        return moving
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(moving, motion, fixed.shape[::-1], flags=flags))


def _correlation(first: np.ndarray, second: np.ndarray) -> float:
    inside = _disc(len(first))
    a, b = first[inside] - first[inside].mean(), second[inside] - second[inside].mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-9))


@cache
def _disc(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.asarray(np.hypot(x, y) < side * 0.43)
