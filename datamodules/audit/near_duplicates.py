"""Finds duplicates of images that were mirrored, rotated, resized, re-encoded or brightened.

Three steps, each for fewer pairs. A descriptor that is invariant to flips and rotations (spectra of
rings) is searched in a tree, so that the cost per image stays nearly constant. Each neighbor is
aligned to the image and the local structure is compared. What is still similar is aligned to a
fraction of a pixel and compared on three scales of detail including the noise: different images of
the same anatomy have similar thumbnails, but different noise.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import cv2
import numpy as np
from rich.progress import track
from scipy.spatial import cKDTree
from scipy.stats import median_abs_deviation

from datamodules.audit import alignment
from datamodules.audit.alignment import Alignment, local_structure

THUMBNAIL_SIZE = 128
COARSE_SIZE = 64  # side of the thumbnails in the first two steps
_RINGS, _ANGLES, _FREQUENCIES = 28, 128, 9
_DIMENSIONS = 16
_NUM_NEIGHBORS, _MAX_CANDIDATES = 9, 2  # per image, in the first and the last step
_MIN_COARSE_CORRELATION = 0.55
_CHUNK = 4096
_LOWEST_LIMIT, _HIGHEST_LIMIT = 0.72, 0.88  # of the similarity from which a pair is reported


class Candidate(NamedTuple):
    """A pair of positions that passed the second step, in the view with the better score."""

    score: float
    first: int
    second: int
    view: int
    motion: Alignment


class NearDuplicate(NamedTuple):
    """Two images that show the same."""

    first: int  # position of one image
    second: int  # position of the other
    similarity: float  # mean correlation of aligned detail on three scales, at most 1
    mirrored: bool  # whether one is the mirror image of the other
    degrees: float  # rotation of one against the other, from -180 to 180


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Thumbnails of some of the files, without a copy of the pixels."""

    images: np.ndarray  # (n, 2, side, side); of square images only the first view is set
    shorter_sides: np.ndarray  # (n,) of the original images, the limit of their detail
    is_square: np.ndarray  # (n,) whether both views are the same
    rows: np.ndarray  # (m,) positions of the files that are compared

    def __len__(self) -> int:
        return len(self.rows)

    def view(self, k: int, which: int, side: int = THUMBNAIL_SIZE) -> np.ndarray:
        """The center square (0) or the whole image squashed (1) of the k-th file."""
        row = self.rows[k]
        return _resize(self.images[row, 0 if self.is_square[row] else which], side)

    def shorter_side(self, i: int, j: int) -> float:
        """The shorter side of the smaller one of two files."""
        return float(self.shorter_sides[self.rows[[i, j]]].min())


def make_thumbnails(image: np.ndarray) -> np.ndarray:
    """uint8 (1 or 2, size, size): the center square; unless square, also the image squashed."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    center = _resize(gray[top : top + side, left : left + side], THUMBNAIL_SIZE)
    return np.stack([center] if height == width else [center, _resize(gray, THUMBNAIL_SIZE)])


def find_near_duplicates(thumbnails: Thumbnails, groups: np.ndarray) -> list[NearDuplicate]:
    """Pairs that show the same; images of the same group (m,) are not compared unless negative."""
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
    limits = _similarity_limit(thumbnails, pairs)
    return [pair for pair, limit in zip(pairs, limits, strict=True) if pair.similarity >= limit]


def _resize(gray: np.ndarray, side: int) -> np.ndarray:
    method = cv2.INTER_AREA if min(gray.shape) > side else cv2.INTER_LINEAR
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
        by_view = [_ring_spectra(thumbnails.view(k, which, COARSE_SIZE)) for which in views]
        spectra[k] = np.stack([spectrum[::2, :33] for spectrum in by_view])
        descriptors[k] = _descriptor(by_view[-1])
    return spectra, descriptors


def _project(descriptors: np.ndarray, thumbnails: Thumbnails) -> np.ndarray:
    """Descriptors scaled by how little distortions change them, on their principal axes."""
    count = min(150, len(thumbnails))
    sample = np.linspace(0, len(thumbnails) - 1, count).astype(int)
    rotation = cv2.getRotationMatrix2D(((THUMBNAIL_SIZE - 1) / 2,) * 2, 9, 1)
    changes = []
    for k in sample:
        view = thumbnails.view(k, 1)
        rotated = cv2.warpAffine(view, rotation, view.shape)
        blurred = cv2.GaussianBlur(view, (0, 0), 1.2)
        bright = cv2.convertScaleAbs(view, alpha=1.2, beta=15)
        small = (_resize(changed, COARSE_SIZE) for changed in (rotated, blurred, bright))
        changes += [_descriptor(_ring_spectra(image)) - descriptors[k] for image in small]
    centered = descriptors / (np.std(np.array(changes), axis=0) + 0.05)
    centered -= centered.mean(axis=0)
    _, axes = np.linalg.eigh(centered.T @ centered)
    return np.asarray(centered @ axes[:, -_DIMENSIONS:], dtype=np.float32)


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
        motion = alignment.estimate_alignment(spectra[i, view], spectra[j, view])
        first, second = (thumbnails.view(k, view, COARSE_SIZE) for k in (i, j))
        score = alignment.aligned_correlation(first, second, motion)
        candidates.append(Candidate(score, i, j, view, motion))
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
    _, i, j, view, motion = candidate
    side = int(np.clip(thumbnails.shorter_side(i, j), 48, THUMBNAIL_SIZE))
    first, second = (thumbnails.view(k, view, side) for k in (i, j))
    similarity = alignment.detail_similarity(first, second, motion)
    return NearDuplicate(i, j, similarity, motion.mirrored, motion.degrees)


def _similarity_limit(thumbnails: Thumbnails, pairs: list[NearDuplicate]) -> np.ndarray:
    """Limit of each pair, higher if the dataset's images are similar, or small with few details."""
    sides = np.array([thumbnails.shorter_side(pair.first, pair.second) for pair in pairs])
    ratio = np.clip((THUMBNAIL_SIZE - sides) / (THUMBNAIL_SIZE - COARSE_SIZE), 0.0, 1.0)
    limits = _LOWEST_LIMIT + ratio * (_HIGHEST_LIMIT - _LOWEST_LIMIT)
    if len(pairs) < 20:
        return np.asarray(limits)
    similarities = np.array([pair.similarity for pair in pairs])
    spread = median_abs_deviation(similarities)
    limit = np.clip(np.median(similarities) + 5 * spread, _LOWEST_LIMIT, _HIGHEST_LIMIT)
    return np.asarray(np.maximum(limits, limit))
