"""Finds duplicates of images that were mirrored, rotated, resized, re-encoded or brightened.

Three steps, each for fewer pairs. A descriptor that is invariant to flips and rotations (spectra of
rings) is searched in a tree, in nearly constant time per image. Each neighbor is aligned and its
local structure is compared. What is still similar is aligned to a fraction of a pixel and compared
on three scales of detail: different images of the same anatomy differ in their noise.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, NamedTuple

import cv2
import numpy as np
from rich.progress import track
from scipy.spatial import cKDTree
from scipy.stats import median_abs_deviation

THUMBNAIL_SIZE = 128
COARSE_SIZE = 64  # side of the thumbnails in the first two steps
_RINGS, _ANGLES, _FREQUENCIES = 28, 128, 9
_DIMENSIONS = 16
_NUM_NEIGHBORS, _MAX_CANDIDATES = 9, 2  # per image, in the first and the last step
_MIN_COARSE_CORRELATION = 0.55
_CHUNK = 4096
_LOWEST_LIMIT, _HIGHEST_LIMIT = 0.72, 0.88  # of the similarity from which a pair is reported
_NUM_ANGLES = 256  # angles that are compared
_MIN_FINE_CORRELATION = 0.4  # below this correlation a fine alignment cannot make images similar
_MAX_ROTATION = 20.0  # of a duplicate from a multiple of 90 degrees, in degrees


class Alignment(NamedTuple):
    """How the second image is moved onto the first: mirrored first, then rotated."""

    mirrored: bool
    degrees: float


class NearDuplicate(NamedTuple):
    """Two images that show the same, or that may do so until their details are compared."""

    similarity: float  # correlation of the aligned local structure, finally of the details
    first: int  # position of one image
    second: int  # position of the other
    view: int  # the view of `Thumbnails` in which they are more similar
    alignment: Alignment  # of the second to the first


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Thumbnails of some of the files."""

    images: np.ndarray  # (n, 2, side, side); of square images only the first view is set
    rows: np.ndarray  # (m,) positions of the files that are compared
    shorter_sides: np.ndarray  # (m,) of the original images, the limit of their detail
    is_square: np.ndarray  # (m,) whether both views are the same

    def __len__(self) -> int:
        return len(self.rows)

    def view(self, k: int, which: int, side: int = THUMBNAIL_SIZE) -> np.ndarray:
        """The center square (0) or the whole image squashed (1) of the k-th file."""
        return _resize(self.images[self.rows[k], 0 if self.is_square[k] else which], side)


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
        best = _best_of_each_image(candidates, len(thumbnails))
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
    structure = _local_structure(thumbnail)
    polar = cv2.warpPolar(structure, (_RINGS, _ANGLES), center, COARSE_SIZE / 2 - 1, flags)
    return np.asarray(np.fft.rfft(polar.T, axis=1))


def _descriptor(spectrum: np.ndarray) -> np.ndarray:
    """Amplitudes of the low frequencies of each ring, invariant to rotation and mirroring."""
    sizes = np.abs(spectrum[:, :_FREQUENCIES]) * np.sqrt(np.arange(1, _RINGS + 1))[:, None]
    return np.asarray(np.sqrt(sizes), dtype=np.float32).ravel()


def _describe(thumbnails: Thumbnails) -> tuple[np.ndarray, np.ndarray]:
    """(m, views, rings / 2, 33) spectra for the alignment, (m, d) descriptors."""
    views = (0,) if thumbnails.is_square.all() else (0, 1)
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
) -> NearDuplicate | None:
    """The better view of a pair, if its local structure is similar after alignment."""
    i, j = pair.tolist()
    candidates = []
    for view in (0,) if thumbnails.is_square[[i, j]].all() else (0, 1):
        motion = _estimate_alignment(spectra[i, view], spectra[j, view])
        first, second = (thumbnails.view(k, view, COARSE_SIZE) for k in (i, j))
        structures = _local_structure(first), _local_structure(_align(second, motion))
        candidates.append(NearDuplicate(_correlation(*structures), i, j, view, motion))
    best = max(candidates, key=lambda candidate: candidate.similarity)
    return best if best.similarity > _MIN_COARSE_CORRELATION else None


def _best_of_each_image(candidates: list[NearDuplicate], count: int) -> list[NearDuplicate]:
    used, chosen = np.zeros(count, dtype=int), []
    for candidate in sorted(candidates, key=lambda candidate: -candidate.similarity):
        pair = [candidate.first, candidate.second]
        if used[pair].min() < _MAX_CANDIDATES:
            used[pair] += 1
            chosen.append(candidate)
    return chosen


def _compare_details(thumbnails: Thumbnails, candidate: NearDuplicate) -> NearDuplicate:
    _, i, j, view, motion = candidate
    side = int(np.clip(thumbnails.shorter_sides[[i, j]].min(), 48, THUMBNAIL_SIZE))
    first, second = (thumbnails.view(k, view, side) for k in (i, j))
    return candidate._replace(similarity=_detail_similarity(first, second, motion))


def _similarity_limit(thumbnails: Thumbnails, pairs: list[NearDuplicate]) -> np.ndarray:
    """Limit of each pair, higher if the dataset's images are similar, or small with few details."""
    sides = np.array([thumbnails.shorter_sides[[p.first, p.second]].min() for p in pairs])
    ratio = np.clip((THUMBNAIL_SIZE - sides) / (THUMBNAIL_SIZE - COARSE_SIZE), 0.0, 1.0)
    limits = _LOWEST_LIMIT + ratio * (_HIGHEST_LIMIT - _LOWEST_LIMIT)
    if len(pairs) < 20:
        return np.asarray(limits)
    similarities = np.array([pair.similarity for pair in pairs])
    spread = median_abs_deviation(similarities)
    limit = np.clip(np.median(similarities) + 5 * spread, _LOWEST_LIMIT, _HIGHEST_LIMIT)
    return np.asarray(np.maximum(limits, limit))


def _local_structure(image: np.ndarray, scale: float = 4.0) -> np.ndarray:
    """float32 image without the local brightness and contrast."""
    values = image.astype(np.float32)
    values -= cv2.GaussianBlur(values, (0, 0), scale)
    variance = cv2.GaussianBlur(values * values, (0, 0), 2 * scale)
    return np.asarray(values / np.sqrt(variance + 1.0))


def _estimate_alignment(first: np.ndarray, second: np.ndarray) -> Alignment:
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


def _detail_similarity(first: np.ndarray, second: np.ndarray, alignment: Alignment) -> float:
    """Mean correlation on three scales of detail after alignment to a fraction of a pixel."""
    first = first.astype(np.float32)
    second = _align(second, alignment).astype(np.float32)
    if _correlation(_local_structure(first), _local_structure(second)) > _MIN_FINE_CORRELATION:
        second = _refine(first, second)
    scores = []
    for scale in (1.0, 2.0, 4.0):
        blurred = [cv2.GaussianBlur(image, (0, 0), scale / 3) for image in (first, second)]
        scores.append(_correlation(*(_local_structure(image, scale) for image in blurred)))
    return float(np.mean(scores))


def _subsample_peak(curve: np.ndarray, top: int) -> float:
    """Offset of the maximum of a parabola through the highest sample and its neighbors."""
    before, peak, after = curve[top - 1], curve[top], curve[(top + 1) % len(curve)]
    return float(np.clip(0.5 * (before - after) / (before - 2 * peak + after - 1e-12), -0.5, 0.5))


def _align(image: np.ndarray, alignment: Alignment) -> np.ndarray:
    center = ((len(image) - 1) / 2, (len(image) - 1) / 2)
    flipped = np.ascontiguousarray(image[::-1]) if alignment.mirrored else image
    rotation = cv2.getRotationMatrix2D(center, -alignment.degrees, 1)
    return np.asarray(cv2.warpAffine(flipped, rotation, (len(image), len(image))))


def _refine(fixed: np.ndarray, moving: np.ndarray) -> np.ndarray:
    """The moving image after a small shift and rotation; unchanged if none is found."""
    first, second = (
        cv2.GaussianBlur(_local_structure(v, 6.0), (0, 0), 1.0) for v in (fixed, moving)
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
