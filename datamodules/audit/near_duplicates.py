"""Finds duplicates of images that were mirrored, rotated, resized, re-encoded or brightened.

Three steps, each for fewer pairs. A descriptor that is invariant to flips and rotations (spectra of
rings) is searched in a tree, so that the cost per image stays nearly constant. Each neighbor is
aligned to the image and the local structure is compared. What is still similar is aligned to a
fraction of a pixel and compared on three scales of detail including the noise: different images of
the same anatomy have similar thumbnails, but different noise.
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

from datamodules.audit.alignment import (
    Alignment,
    aligned_correlation,
    detail_similarity,
    estimate_alignment,
    local_structure,
)

THUMBNAIL_SIZE = 128
COARSE_SIZE = 64  # side of the thumbnails in the first two steps
_RINGS, _ANGLES, _FREQUENCIES = 28, 128, 9
_DIMENSIONS = 16
_NUM_NEIGHBORS, _MAX_CANDIDATES = 9, 2  # per image, in the first and the last step
_MIN_COARSE_CORRELATION = 0.55
_CHUNK = 4096
_LOWEST_LIMIT, _HIGHEST_LIMIT = 0.72, 0.88  # of the similarity from which a pair is reported


class Candidate(NamedTuple):
    """A pair that passed the second step: its score, the view of that score, its alignment."""

    score: float
    first: int
    second: int
    view: int
    alignment: Alignment


@dataclass(frozen=True)
class NearDuplicate:
    """Two images that show the same.

    Args:
        first: Position of one image.
        second: Position of the other image.
        similarity: Mean correlation of aligned detail on three scales, at most 1.
        mirrored: Whether one is the mirror image of the other.
        degrees: Rotation of one against the other, from -180 to 180.
    """

    first: int
    second: int
    similarity: float
    mirrored: bool
    degrees: float


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Thumbnails of some of the files, without a copy of the pixels.

    Args:
        images: (n, 2, THUMBNAIL_SIZE, THUMBNAIL_SIZE) from ``make_thumbnails``; a square image
            only has the first view.
        shorter_sides: (n,) shorter side of each original image, the limit of its detail.
        is_square: (n,) whether both views are the same.
        rows: (m,) positions of the files that are compared.
    """

    images: np.ndarray
    shorter_sides: np.ndarray
    is_square: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def view(self, k: int, which: int) -> np.ndarray:
        """The center square (0) or the whole image squashed (1) of the k-th file."""
        row = self.rows[k]
        return np.asarray(self.images[row, 0 if self.is_square[row] else which])

    def coarse_view(self, k: int, which: int) -> np.ndarray:
        """The view at the size of the first two steps."""
        return _resize(self.view(k, which), COARSE_SIZE)


def make_thumbnails(image: np.ndarray) -> np.ndarray:
    """uint8 (1 or 2, size, size): the center square; unless square, also the image squashed."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    center = _resize(gray[top : top + side, left : left + side], THUMBNAIL_SIZE)
    return np.stack([center] if height == width else [center, _resize(gray, THUMBNAIL_SIZE)])


def find_near_duplicates(thumbnails: Thumbnails, groups: np.ndarray) -> list[NearDuplicate]:
    """Pairs of images that show the same.

    Args:
        thumbnails: The images.
        groups: (m,) images of the same group are not compared, unless it is negative.
    """
    if len(thumbnails) < 2:
        return []
    spectra, descriptors = _describe(thumbnails)
    neighbors = _find_neighbors(_project(descriptors, thumbnails), groups)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        chunks = np.array_split(neighbors, len(neighbors) // _CHUNK + 1)  # limits the open futures
        compare = partial(_compare_coarsely, thumbnails, spectra)
        candidates = [pair for part in chunks for pair in pool.map(compare, part) if pair]
        best = _best_candidates(candidates, len(thumbnails))
        pairs = list(pool.map(partial(_compare_details, thumbnails), best))
    limit = _similarity_limit(np.array([pair.similarity for pair in pairs]))
    return [p for p in pairs if p.similarity >= max(limit, _limit_for_size(thumbnails, p))]


def _resize(gray: np.ndarray, side: int) -> np.ndarray:
    shrinks = min(gray.shape) > side
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(gray, (side, side), interpolation=method))


def _ring_spectra(thumbnail: np.ndarray) -> np.ndarray:
    """(rings, frequencies) complex: the spectrum of each ring around the center."""
    center = ((COARSE_SIZE - 1) / 2, (COARSE_SIZE - 1) / 2)
    flags = cv2.WARP_POLAR_LINEAR | cv2.INTER_LINEAR | cv2.WARP_FILL_OUTLIERS
    structure = local_structure(thumbnail)
    polar = cv2.warpPolar(structure, (_RINGS, _ANGLES), center, COARSE_SIZE / 2 - 1, flags)
    return np.asarray(np.fft.rfft(polar.T, axis=1))


def _descriptor(spectrum: np.ndarray) -> np.ndarray:
    """Amplitudes of the low frequencies of each ring, invariant to rotation and mirroring."""
    sizes = np.abs(spectrum[:, :_FREQUENCIES]) * np.sqrt(np.arange(1, _RINGS + 1))[:, None]
    return np.asarray(np.sqrt(sizes), dtype=np.float32).ravel()


def _describe(thumbnails: Thumbnails) -> tuple[np.ndarray, np.ndarray]:
    """(m, views, rings / 2, 33) spectra for the alignment, (m, d) descriptors."""
    views = (0,) if thumbnails.is_square[thumbnails.rows].all() else (0, 1)
    spectra = np.empty((len(thumbnails), len(views), _RINGS // 2, 33), dtype=np.complex64)
    descriptors = np.empty((len(thumbnails), _RINGS * _FREQUENCIES), dtype=np.float32)
    for k in track(range(len(thumbnails)), "describing every image"):
        by_view = [_ring_spectra(thumbnails.coarse_view(k, which)) for which in views]
        spectra[k] = np.stack([spectrum[::2, :33] for spectrum in by_view])
        descriptors[k] = _descriptor(by_view[-1])
    return spectra, descriptors


def _project(descriptors: np.ndarray, thumbnails: Thumbnails) -> np.ndarray:
    """Descriptors scaled by how little distortions change them, on their principal axes."""
    count = min(150, len(thumbnails))
    sample = np.linspace(0, len(thumbnails) - 1, count).astype(int)
    changes = [
        _descriptor(_ring_spectra(_resize(distorted, COARSE_SIZE))) - descriptors[k]
        for k in sample
        for distorted in _distortions(thumbnails.view(k, 1))
    ]
    centered = descriptors / (np.std(np.array(changes), axis=0) + 0.05)
    centered -= centered.mean(axis=0)
    _, axes = np.linalg.eigh(centered.T @ centered)
    return np.asarray(centered @ axes[:, -_DIMENSIONS:], dtype=np.float32)


def _distortions(view: np.ndarray) -> Iterator[np.ndarray]:
    center = ((THUMBNAIL_SIZE - 1) / 2, (THUMBNAIL_SIZE - 1) / 2)
    rotation = cv2.getRotationMatrix2D(center, 9, 1)
    yield cv2.warpAffine(view, rotation, (THUMBNAIL_SIZE, THUMBNAIL_SIZE))
    yield cv2.GaussianBlur(view, (0, 0), 1.2)
    yield cv2.convertScaleAbs(view, alpha=1.2, beta=15)


def _find_neighbors(points: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """(n, 2) positions of each image with its nearest neighbors, the smaller position first."""
    count = min(_NUM_NEIGHBORS + 1, len(points))
    _, nearest = cKDTree(points).query(points, k=count, eps=0.3, workers=-1)
    first = np.repeat(np.arange(len(points)), count)
    pairs = np.sort(np.stack([first, nearest.ravel()], axis=1), axis=1)
    pairs = np.unique(pairs[pairs[:, 0] != pairs[:, 1]], axis=0)
    same = (groups[pairs[:, 0]] == groups[pairs[:, 1]]) & (groups[pairs[:, 0]] >= 0)
    return np.asarray(pairs[~same])


def _compare_coarsely(
    thumbnails: Thumbnails, spectra: np.ndarray, pair: np.ndarray
) -> Candidate | None:
    """The better view of a pair, if its local structure is similar after alignment."""
    i, j = int(pair[0]), int(pair[1])
    is_square = thumbnails.is_square[thumbnails.rows[[i, j]]].all()
    candidates = []
    for view in (0,) if is_square else (0, 1):
        alignment = estimate_alignment(spectra[i, view], spectra[j, view])
        first, second = (thumbnails.coarse_view(k, view) for k in (i, j))
        score = aligned_correlation(first, second, alignment)
        candidates.append(Candidate(score, i, j, view, alignment))
    best = max(candidates, key=lambda candidate: candidate.score)
    return best if best.score > _MIN_COARSE_CORRELATION else None


def _best_candidates(candidates: list[Candidate], count: int) -> list[Candidate]:
    """The few best candidates of each image."""
    used = np.zeros(count, dtype=int)
    chosen = []
    for candidate in sorted(candidates, key=lambda candidate: -candidate.score):
        pair = [candidate.first, candidate.second]
        if used[pair].min() < _MAX_CANDIDATES:
            used[pair] += 1
            chosen.append(candidate)
    return chosen


def _compare_details(thumbnails: Thumbnails, candidate: Candidate) -> NearDuplicate:
    i, j, alignment = candidate.first, candidate.second, candidate.alignment
    shorter_side = thumbnails.shorter_sides[thumbnails.rows[[i, j]]].min()
    side = int(np.clip(shorter_side, 48, THUMBNAIL_SIZE))
    first, second = (_resize(thumbnails.view(k, candidate.view), side) for k in (i, j))
    similarity = detail_similarity(first, second, alignment)
    return NearDuplicate(i, j, similarity, alignment.mirrored, alignment.degrees)


def _similarity_limit(similarities: np.ndarray) -> float:
    """Limit of the similarity; higher if different images of the dataset are similar already."""
    if len(similarities) < 20:
        return _LOWEST_LIMIT
    median = float(np.median(similarities))
    deviation = float(np.median(np.abs(similarities - median)))
    return float(np.clip(median + 5 * deviation, _LOWEST_LIMIT, _HIGHEST_LIMIT))


def _limit_for_size(thumbnails: Thumbnails, pair: NearDuplicate) -> float:
    """Limit of the similarity; higher for small images, which have little detail to compare."""
    side = thumbnails.shorter_sides[thumbnails.rows[[pair.first, pair.second]]].min()
    ratio = float(np.clip((THUMBNAIL_SIZE - side) / (THUMBNAIL_SIZE - COARSE_SIZE), 0.0, 1.0))
    return _LOWEST_LIMIT + ratio * (_HIGHEST_LIMIT - _LOWEST_LIMIT)
