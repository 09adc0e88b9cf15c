"""Lays one picture over another, by turning and mirroring, and says how alike they then are."""

from functools import cache
from typing import Any, NamedTuple

import cv2
import numpy as np

_STEPS = 256  # angles that are tried
_WORTH = 0.4  # below this correlation no alignment makes two pictures alike
_REACH = 20.0  # how far from a quarter turn a copy may be turned, in degrees


class Laid(NamedTuple):
    """How the second picture has to be moved to lie on the first: mirrored first, then turned."""

    mirrored: bool
    degrees: float


def structure(picture: np.ndarray, scale: float = 4.0) -> np.ndarray:
    """float32: what is left when brightness and contrast of the surroundings are taken out."""
    values = picture.astype(np.float32)
    values -= cv2.GaussianBlur(values, (0, 0), scale)
    spread = cv2.GaussianBlur(values * values, (0, 0), 2 * scale)
    return np.asarray(values / np.sqrt(spread + 1.0))


def angle_between(first: np.ndarray, second: np.ndarray) -> Laid:
    """The best turn near a quarter turn, from the spectra (rings, frequencies) of both."""
    weight = np.sqrt(np.arange(1, len(first) + 1))[:, None]
    angles = np.arange(_STEPS) * 360.0 / _STEPS
    allowed = np.abs((angles + 45) % 90 - 45) <= _REACH
    best = (-np.inf, False, 0.0)
    for mirrored in (False, True):
        other = second if mirrored else np.conj(second)
        match = np.fft.irfft((first * other * weight).sum(axis=0), _STEPS)
        top = int(np.where(allowed, match, -np.inf).argmax())
        best = max(best, (float(match[top]), mirrored, (top + _peak(match, top)) * 360.0 / _STEPS))
    return Laid(best[1], (best[2] + 180.0) % 360.0 - 180.0)


def laid_over(first: np.ndarray, second: np.ndarray, laid: Laid) -> float:
    """Correlation of the local structure of two squares of one size within a disc."""
    return _correlation(structure(first), structure(_moved(second, laid)))


def detail_likeness(first: np.ndarray, second: np.ndarray, laid: Laid) -> float:
    """Mean correlation on three scales of detail after alignment to a fraction of a pixel."""
    one, other = first.astype(np.float32), _moved(second, laid).astype(np.float32)
    if _correlation(structure(one), structure(other)) > _WORTH:
        other = _aligned(one, other)
    scores = []
    for scale in (1.0, 2.0, 4.0):
        blurred = [cv2.GaussianBlur(each, (0, 0), scale / 3) for each in (one, other)]
        scores.append(_correlation(*(structure(each, scale) for each in blurred)))
    return float(np.mean(scores))


def _peak(match: np.ndarray, top: int) -> float:
    """How far beside its highest sample a curve has its top."""
    before, here, after = match[top - 1], match[top], match[(top + 1) % len(match)]
    return float(np.clip(0.5 * (before - after) / (before - 2 * here + after - 1e-12), -0.5, 0.5))


def _moved(picture: np.ndarray, laid: Laid) -> np.ndarray:
    side = len(picture)
    upright = np.ascontiguousarray(picture[::-1]) if laid.mirrored else picture
    turn = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), -laid.degrees, 1)
    return np.asarray(cv2.warpAffine(upright, turn, (side, side)))


def _aligned(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The second shifted and turned a little; as it is when the alignment finds no way."""
    first, second = (cv2.GaussianBlur(structure(each, 6.0), (0, 0), 1.0) for each in (one, other))
    mask = _disc(len(one)).astype(np.uint8) * 255
    start: Any = np.eye(2, 3, dtype=np.float32)
    stop = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 15, 1e-3)
    try:
        _, shift = cv2.findTransformECC(first, second, start, cv2.MOTION_EUCLIDEAN, stop, mask, 1)
    except cv2.error:
        return other
    if np.abs(shift - np.eye(2, 3)).max() > len(one) / 16:
        return other
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(other, shift, one.shape[::-1], flags=flags))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    inside = _disc(len(one))
    a, b = one[inside] - one[inside].mean(), other[inside] - other[inside].mean()
    return float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum() + 1e-9))


@cache
def _disc(side: int) -> np.ndarray:
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    return np.asarray(np.hypot(x, y) < side * 0.43)
