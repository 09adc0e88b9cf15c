"""Finds pictures that are copies of one another under flips, turns, light, size and compression.

Three steps, each for fewer pairs. A descriptor that no flip or turn about the middle changes (the
spectra of rings) is searched through a tree, so that the cost of a picture stays nearly flat as the
set grows. Each neighbor is laid over the picture and the local structure compared. What still
looks alike is aligned to a fraction of a pixel and judged on three scales of detail, the grain
among them: round frames and alike anatomy fool thumbnails, they do not share their grain.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from rich.progress import track
from scipy.spatial import cKDTree

from datamodules.audit.alignment import Laid, angle_between, detail_likeness, laid_over, structure

LOOK = 128  # side of what is kept of a picture
SMALL = 64  # side of what the first two steps see
_RINGS, _ANGLES, _WAVES = 28, 128, 9
_DIMENSIONS = 16
_NEIGHBOURS, _CHECKED = 9, 2
_COARSE = 0.55
_AT_ONCE = 4096
_LEAST, _MOST = 0.72, 0.88  # of the likeness from which on a pair counts


class Alike(NamedTuple):
    """A pair that passed the second step: its score, the view that gave it, and how it lies."""

    score: float
    first: int
    second: int
    view: int
    laid: Laid


@dataclass(frozen=True)
class Pair:
    """Two pictures that show the same.

    Args:
        first: Position of one.
        second: Position of the other.
        likeness: Mean correlation of detail on three scales once aligned, at most 1.
        mirrored: Whether one is the mirror image of the other.
        degrees: How far one is turned against the other, from -180 to 180.
    """

    first: int
    second: int
    likeness: float
    mirrored: bool
    degrees: float


@dataclass(frozen=True, eq=False)
class Looks:
    """Small pictures of some files, without a copy of them.

    Args:
        kept: (n, 2, LOOK, LOOK) from ``look``; of a square picture only the first view counts.
        sides: (n,) shorter side of each picture, above which it has no detail.
        square: (n,) whether both views are the same.
        rows: (m,) the entries that are meant.
    """

    kept: np.ndarray
    sides: np.ndarray
    square: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def view(self, k: int, which: int) -> np.ndarray:
        """The middle square (0) or the whole picture squashed (1) of the k-th entry."""
        row = self.rows[k]
        return np.asarray(self.kept[row, 0 if self.square[row] else which])

    def small(self, k: int, which: int) -> np.ndarray:
        """The same at the size of the first two steps."""
        return _resized(self.view(k, which), SMALL)


def look(image: np.ndarray) -> np.ndarray:
    """uint8 (1 or 2, LOOK, LOOK): the middle square of a picture; unless square, all squashed."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    middle = _resized(gray[top : top + side, left : left + side], LOOK)
    return np.stack([middle] if height == width else [middle, _resized(gray, LOOK)])


def search(looks: Looks, groups: np.ndarray) -> list[Pair]:
    """Pairs of pictures that show the same.

    Args:
        looks: The pictures.
        groups: (m,) pictures of one group are not compared, unless it is below 0.
    """
    if len(looks) < 2:
        return []
    spectra, descriptors = _described(looks)
    candidates = _candidates(_learned(descriptors, looks), groups)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        some = np.array_split(candidates, len(candidates) // _AT_ONCE + 1)  # few futures at a time
        step = partial(_coarse, looks, spectra)
        alike = [found for part in some for found in pool.map(step, part) if found]
        scored = list(pool.map(partial(_fine, looks), _best(alike, len(looks))))
    limit = _limit(np.array([pair.likeness for pair in scored]))
    return [pair for pair in scored if pair.likeness >= max(limit, _floor(looks, pair))]


def _resized(gray: np.ndarray, side: int) -> np.ndarray:
    shrinks = min(gray.shape) > side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(gray, (side, side), interpolation=method))


def _rings(small: np.ndarray) -> np.ndarray:
    """Gives (rings, frequencies): the complex spectrum of each ring around the middle."""
    middle = ((SMALL - 1) / 2, (SMALL - 1) / 2)
    flags = cv2.WARP_POLAR_LINEAR | cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
    polar = cv2.warpPolar(structure(small), (_RINGS, _ANGLES), middle, SMALL / 2 - 1, flags)
    return np.asarray(np.fft.rfft(polar.T, axis=1))


def _descriptor(spectrum: np.ndarray) -> np.ndarray:
    """Sizes of the slow waves of each ring; turns and mirroring leave them as they are."""
    sizes = np.abs(spectrum[:, :_WAVES]) * np.sqrt(np.arange(1, _RINGS + 1))[:, None]
    return np.asarray(np.sqrt(sizes), dtype=np.float32).ravel()


def _described(looks: Looks) -> tuple[np.ndarray, np.ndarray]:
    """(m, views, rings / 2, 33) spectra for the alignment, (m, d) descriptors."""
    views = (0,) if looks.square[looks.rows].all() else (0, 1)
    spectra = np.empty((len(looks), len(views), _RINGS // 2, 33), dtype=np.complex64)
    descriptors = np.empty((len(looks), _RINGS * _WAVES), dtype=np.float32)
    for k in track(range(len(looks)), "describing every picture"):
        both = [_rings(looks.small(k, which)) for which in views]
        spectra[k] = np.stack([spectrum[::2, :33] for spectrum in both])
        descriptors[k] = _descriptor(both[-1])
    return spectra, descriptors


def _learned(descriptors: np.ndarray, looks: Looks) -> np.ndarray:
    """Descriptors in which what copies change counts little and what tells pictures apart much."""
    some = np.linspace(0, len(looks) - 1, min(150, len(looks))).astype(int)
    noise = [
        _descriptor(_rings(_resized(copy, SMALL))) - descriptors[k]
        for k in some
        for copy in _copies(looks.view(k, 1))
    ]
    centerd = descriptors / (np.std(np.array(noise), axis=0) + 0.05)
    centerd -= centerd.mean(axis=0)
    _, axes = np.linalg.eigh(centerd.T @ centerd)
    return np.asarray(centerd @ axes[:, -_DIMENSIONS:], dtype=np.float32)


def _copies(view: np.ndarray) -> Iterator[np.ndarray]:
    turn = cv2.getRotationMatrix2D(((LOOK - 1) / 2, (LOOK - 1) / 2), 9, 1)
    yield cv2.warpAffine(view, turn, (LOOK, LOOK))
    yield cv2.GaussianBlur(view, (0, 0), 1.2)
    yield cv2.convertScaleAbs(view, alpha=1.2, beta=15)


def _candidates(points: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(m, 2) positions, each picture with its nearest in the tree, the first the smaller."""
    count = min(_NEIGHBOURS + 1, len(points))
    _, near = cKDTree(points).query(points, k=count, eps=0.3, workers=-1)
    first = np.repeat(np.arange(len(points)), count)
    pairs = np.sort(np.stack([first, near.ravel()], axis=1), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    same = (groups[pairs[:, 0]] == groups[pairs[:, 1]]) & (groups[pairs[:, 0]] >= 0)
    return np.asarray(pairs[~same])


def _coarse(looks: Looks, spectra: np.ndarray, pair: np.ndarray) -> Alike | None:
    """The better of both views of a pair, if it looks alike when laid over one another."""
    i, j = int(pair[0]), int(pair[1])
    found = []
    for view in (0, 1):
        laid = angle_between(spectra[i, view], spectra[j, view])
        found.append((laid_over(looks.small(i, view), looks.small(j, view), laid), view, laid))
        if looks.square[looks.rows[i]] and looks.square[looks.rows[j]]:
            break
    score, view, laid = max(found, key=lambda each: each[0])
    return Alike(score, i, j, view, laid) if score > _COARSE else None


def _best(alike: list[Alike], count: int) -> list[Alike]:
    """For each picture the few partners that look most alike."""
    taken = np.zeros(count, dtype=int)
    kept = []
    for each in sorted(alike, key=lambda each: -each.score):
        if min(taken[each.first], taken[each.second]) < _CHECKED:
            taken[[each.first, each.second]] += 1
            kept.append(each)
    return kept


def _fine(looks: Looks, alike: Alike) -> Pair:
    i, j, laid = alike.first, alike.second, alike.laid
    side = int(np.clip(looks.sides[looks.rows[[i, j]]].min(), 48, LOOK))
    one, other = (_resized(looks.view(k, alike.view), side) for k in (i, j))
    return Pair(i, j, detail_likeness(one, other, laid), laid.mirrored, laid.degrees)


def _limit(likeness: np.ndarray) -> float:
    """Higher where different pictures of the set are much alike already."""
    if len(likeness) < 20:
        return _LEAST
    middle = float(np.median(likeness))
    spread = float(np.median(np.abs(likeness - middle)))
    return float(np.clip(middle + 5 * spread, _LEAST, _MOST))


def _floor(looks: Looks, pair: Pair) -> float:
    """Higher for small pictures, which have little detail to differ in."""
    side = looks.sides[looks.rows[[pair.first, pair.second]]].min()
    share = float(np.clip((LOOK - side) / (LOOK - SMALL), 0.0, 1.0))
    return _LEAST + share * (_MOST - _LEAST)
