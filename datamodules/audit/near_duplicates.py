"""Finds duplicates of images that were rotated, mirrored, cropped, blurred, inverted or re-encoded.

Neighbors of each image are searched with descriptors that ignore such changes, aligned, and
compared on three scales of detail including the noise: different images of the same anatomy have
similar thumbnails, but different details. The similarity from which a pair is a duplicate comes
from random pairs of different patients, which are no copies; how similar copies are at least comes
from copies that are simulated. Neither depends on how many duplicates there are.
"""

import os
import tempfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.progress import track
from scipy.stats import norm

from datamodules.audit.alignment import (
    FEATURES,
    ZOOMS,
    Pose,
    coarse_scores,
    describe,
    detail_similarity,
    refine_pose,
    resize,
)
from datamodules.audit.memo import AUDIT_VERSION, Memo, key_of
from datamodules.audit.thumbnails import THUMBNAIL_SIZE, Thumbnails, simulate_copy
from datamodules.splits import Groups

_DIMENSIONS = 32
_NUM_NEIGHBORS, _MOST_NEIGHBORS = 6, 100  # of each image, without and with its duplicates
_FEWER_BY_RINGS = 4  # which miss cropped copies, but rarely others
_NUM_COPIES, _NUM_RANDOM_PAIRS, _NUM_COMPARED = 100, 2_000, 80  # of the samples
_LOWEST_SCORE = 0.6  # of the coarse alignment of a pair whose details are compared
_FALSE_PAIRS = 0.05  # expected number among the neighbors
_FEWEST_NEIGHBORS = 20  # that are compared in detail, to know how similar others are
_LOWEST_LIMIT, _SMALLEST_SLOPE, _MARGIN = 0.7, 0.03, 0.1  # as Fisher's z
_RISE_PER_OCTAVE = 0.5  # of Fisher's z of different images, for each halving of their size
_BLOCK, _TILE = 128, 4096  # images whose neighbors are searched, images compared with them
_ALIGNED, _REMEMBERED = 32, 2048  # pairs aligned together, and saved in one file
_TOGETHER = 64  # pairs compared in detail before their images count as connected
_DESCRIBED = 1024  # images that are described before their features are written

Pair = tuple[int, int]
_RELATIVE_ZOOMS = [(k, 0) for k in range(len(ZOOMS))] + [(0, k) for k in range(1, len(ZOOMS))]


class NearDuplicate(NamedTuple):
    """Two images with the same content."""

    first: int  # position of one image
    second: int  # position of the other
    similarity: float  # mean correlation of aligned details on three scales, at most 1; as expected
    # of images of ``THUMBNAIL_SIZE``: smaller ones lack the detail in which different images differ
    pose: Pose  # how the one is moved onto the other
    is_exposure: bool = False  # of the same patient, and not as similar as most copies


def find_near_duplicates(thumbnails: Thumbnails, patients: np.ndarray) -> list[NearDuplicate]:
    """``NearDuplicateSearch.find`` among all of m images of ``patients`` (m,)."""
    with tempfile.TemporaryDirectory() as folder:
        search = NearDuplicateSearch([""] * len(thumbnails), lambda: thumbnails, Memo(Path(folder)))
        return search.find(patients, patients == patients)


class NearDuplicateSearch:
    """Searches images for copies; keeps what further searches among some of them need.

    Args:
        digests: What identifies the content of each of m images.
        load_thumbnails: Returns their thumbnails; called unless the memo has the results.
        memo: Where results and steps are written, and read from.
    """

    def __init__(
        self, digests: list[str], load_thumbnails: Callable[[], Thumbnails], memo: Memo
    ) -> None:
        self._load_thumbnails, self._memo = load_thumbnails, memo
        self._key = key_of(AUDIT_VERSION, *digests)

    def find(self, patients: np.ndarray, is_searched: np.ndarray) -> list[NearDuplicate]:
        """Pairs with the same content; every duplicate is connected to its original by such pairs.

        ``patients`` (m,) are numbers, negative if unknown. Images of one patient must be more
        similar than others, since two exposures of a patient are no copies; the less similar pairs
        are marked as exposures. Only images where ``is_searched`` (m,) are compared.
        """
        if is_searched.sum() < 2:
            return []
        key = key_of(self._key, patients.astype(np.int64), is_searched)
        search = partial(self._search, patients, is_searched)
        return _unpack(self._memo.load(f"copies-{key}", search, is_result=True))

    def _search(self, patients: np.ndarray, is_searched: np.ndarray) -> np.ndarray:
        """``find`` without the memo, as rows of ``_pack``; each pair once, whatever its views."""
        pairs: dict[Pair, NearDuplicate] = {}
        for comparison in self._comparisons:
            comparison.patients, comparison.is_searched = patients, is_searched
            for pair in _search(comparison):
                known = pairs.get(pair[:2], pair)
                pairs[pair[:2]] = max(pair, known, key=lambda p: (not p.is_exposure, p.similarity))
        return _pack([pairs[key] for key in sorted(pairs)])

    @cached_property
    def _comparisons(self) -> list["_Comparison"]:
        """One comparison per view; square images have a single view."""
        thumbnails = self._load_thumbnails()
        views = (0,) if thumbnails.is_square.all() else (0, 1)
        return [_Comparison(thumbnails, k, self._memo, key_of(self._key, str(k))) for k in views]


def _pack(pairs: list[NearDuplicate]) -> np.ndarray:
    """(n, 11) floats of n pairs, from which ``_unpack`` restores them."""
    rows = [
        (p.first, p.second, p.similarity, p.is_exposure, p.pose.score, *p.pose.matrix.ravel())
        for p in pairs
    ]
    return np.array(rows, dtype=float).reshape(-1, 11)


def _unpack(rows: np.ndarray) -> list[NearDuplicate]:
    return [
        NearDuplicate(int(i), int(j), similarity, Pose(score, np.reshape(matrix, (2, 3))), bool(e))
        for i, j, similarity, e, score, *matrix in rows.tolist()
    ]


class _Comparison:
    """Compares images in one view; simulated copies are numbered after the images."""

    patients: np.ndarray  # (m,) of a search
    is_searched: np.ndarray  # (m,)

    def __init__(self, thumbnails: Thumbnails, which: int, memo: Memo, key: str) -> None:
        self.thumbnails, self.which, self.memo, self.key = thumbnails, which, memo, key
        self.pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        self.count, rng = len(thumbnails), np.random.default_rng(0)
        self.originals = np.linspace(0, self.count - 1, min(self.count, _NUM_COPIES)).astype(int)
        is_cropped = np.arange(len(self.originals)) % 3 == 0
        self.copies = [
            simulate_copy(thumbnails.view(k, which), rng, crop, thumbnails.shorter_sides[k])
            for k, crop in zip(self.originals, is_cropped, strict=True)
        ]
        self.features = memo.file(f"features-{key}")  # too large for the memory
        by_rings, by_fourier = self._describe()
        self.rings = _project(by_rings[:, None], self.originals, self.count, ~is_cropped)[:, 0]
        self.fourier = _project(by_fourier, self.originals, self.count, is_cropped >= 0)
        self.known_scores: dict[Pair, float] = {}
        self.results: dict[Pair, NearDuplicate] = {}

    def scores(self, pairs: list[Pair]) -> np.ndarray:
        """(n,) absolute correlations of the ``local_structure`` of n pairs, coarsely aligned.

        They are absolute so that inverted copies have high scores.
        """
        missing = [pair for pair in dict.fromkeys(pairs) if pair not in self.known_scores]
        parts = list(_batches(missing, _REMEMBERED))
        for part in track(parts, "aligning neighbors", disable=len(parts) < 2):
            scores = self._load("scores", part, self._align_all)
            self.known_scores |= dict(zip(part, scores.tolist(), strict=True))
        return np.array([self.known_scores[pair] for pair in pairs])

    def compare(self, pairs: Iterable[Pair]) -> list[NearDuplicate]:
        """Each pair with its pose and detail similarity, in the given order; computed once."""
        missing = [pair for pair in pairs if pair not in self.results]
        if missing:
            results = _unpack(self._load("details", missing, self._compare_all))
            self.results |= dict(zip(missing, results, strict=True))
        return [self.results[pair] for pair in pairs]

    def _load(
        self, kind: str, pairs: list[Pair], compute: Callable[[list[Pair]], np.ndarray]
    ) -> np.ndarray:
        """The memo's array of this kind for these pairs, computed if it is absent."""
        key = key_of(self.key, np.array(pairs, np.int64))
        return self.memo.load(f"{kind}-{key}", partial(compute, pairs))

    def _align_all(self, pairs: list[Pair]) -> np.ndarray:
        """``_align`` on all cores."""
        return np.concatenate([*self.pool.map(self._align, _batches(pairs, _ALIGNED))])

    def _compare_all(self, pairs: list[Pair]) -> np.ndarray:
        """``_compare`` of each pair on all cores, as rows of ``_pack``."""
        return _pack([*self.pool.map(self._compare, pairs)])

    def is_same_patient(self, pair: Pair) -> bool:
        """Whether both images are of one patient, as far as patients are known."""
        first, second = self.patients[list(pair)]
        return bool(first == second >= 0)

    def neighbors(self, counts: np.ndarray) -> set[Pair]:
        """Pairs of each image k with its ``counts[k]`` nearest neighbors by either descriptor.

        The smaller number comes first in each pair; ``counts`` is (m,).
        """
        pairs: set[Pair] = set()
        rows = np.flatnonzero(counts)
        blocks = [rows[k : k + _BLOCK] for k in range(0, len(rows), _BLOCK)]
        for block in track(blocks, "searching neighbors", disable=len(blocks) < 8):
            by_descriptor = zip(self._all_distances(block), (_FEWER_BY_RINGS, 0), strict=True)
            for distances, fewer in by_descriptor:
                distances[:, ~self.is_searched] = np.inf
                distances[np.arange(len(block)), block] = np.inf
                count = min(counts[block].max(), self.is_searched.sum() - 1)
                nearest = _argsmallest(distances, count)
                for k, others in zip(block, nearest, strict=True):
                    pairs |= {(min(k, n), max(k, n)) for n in others[: counts[k] - fewer].tolist()}
        return {(int(i), int(j)) for i, j in pairs}

    def random_pairs(self, groups: Groups) -> list[Pair]:
        """Random pairs of different patients and of different groups."""
        shape = (min(_NUM_RANDOM_PAIRS, 10 * self.count), 2)
        rng = np.random.default_rng(1)
        pairs = np.unique(np.sort(rng.integers(self.count, size=shape), axis=1), axis=0)
        return [
            (i, j) for i, j in pairs.tolist()
            if self.is_searched[[i, j]].all()
            and not groups.is_connected(i, j) and not self.is_same_patient((i, j))
        ]  # fmt: skip

    def _describe(self) -> tuple[np.ndarray, np.ndarray]:
        """Descriptors of images and copies, by rings and by Fourier; writes their features."""
        images, descriptors = range(self.count + len(self.copies)), []
        with self.features.open("wb") as file:
            for start in track(images[::_DESCRIBED], "describing every image"):
                numbers = images[start : start + _DESCRIBED]
                part = self.pool.map(lambda k: describe(self._image(k)), numbers)
                features, *parts = (np.stack(values) for values in zip(*part, strict=True))
                file.write(features.data)
                descriptors.append(parts)
        by_rings, by_fourier = zip(*descriptors, strict=True)
        return np.concatenate(by_rings), np.concatenate(by_fourier)

    def _features(self, rows: np.ndarray) -> np.ndarray:
        """``FEATURES`` (n,) of n images; a map that stayed open would fill the memory."""
        return np.array(np.memmap(self.features, FEATURES, "r")[rows])

    def _image(self, k: int) -> np.ndarray:
        """The thumbnail of an image, or a simulated copy."""
        is_copy = k >= self.count
        return self.copies[k - self.count] if is_copy else self.thumbnails.view(k, self.which)

    def _all_distances(self, block: np.ndarray) -> Iterable[np.ndarray]:
        """Yields squared distances (b, count) of b images to all, by rings, then by Fourier."""
        yield _min_squared_distances([(self.rings[block], self.rings[: self.count])])
        points = self.fourier[: self.count]
        zoomed = [(points[block, i], points[:, j]) for i, j in _RELATIVE_ZOOMS]
        yield _min_squared_distances(zoomed)

    def _align(self, pairs: list[Pair]) -> np.ndarray:
        """``coarse_scores`` (n,) of n pairs."""
        fixed, moving, zooms = self._split_by_zoom(pairs)
        return coarse_scores(self._features(fixed), self._features(moving), zooms, _LOWEST_SCORE)

    def _split_by_zoom(self, pairs: list[Pair]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images (n,) that show less, those that show more, and positions in ``ZOOMS`` of these."""
        (i, j), (first, second) = np.transpose(pairs), np.transpose(_RELATIVE_ZOOMS)
        changes = self.fourier[i][:, first] - self.fourier[j][:, second]
        best = np.square(changes).sum(axis=2).argmin(axis=1)
        shows_more = first[best] > 0
        fixed, moving = np.where(shows_more, (j, i), (i, j))
        return fixed, moving, np.maximum(first, second)[best]

    def _compare(self, pair: Pair) -> NearDuplicate:
        """The pair with its pose and detail similarity."""
        fixed, moving, zooms = self._split_by_zoom([pair])
        pose = refine_pose(self._features(fixed), self._features(moving), zooms)
        rows = [k if k < self.count else self.originals[k - self.count] for k in pair]
        side = int(np.clip(self.thumbnails.shorter_sides[rows].min(), 48, THUMBNAIL_SIZE))
        images = [resize(self._image(int(k)), side) for k in (*fixed, *moving)]
        z = np.arctanh(detail_similarity(images[0], images[1], pose))
        z -= _RISE_PER_OCTAVE * np.log2(THUMBNAIL_SIZE / side)
        return NearDuplicate(*pair, float(np.tanh(z)), pose)


def _search(comparison: _Comparison) -> list[NearDuplicate]:
    """The near duplicates of one view: pairs that connect every duplicate with its original."""
    copies = list(enumerate(comparison.originals.tolist(), start=comparison.count))
    lowest_score = max(0.98 * float(np.quantile(comparison.scores(copies), 0.02)), _LOWEST_SCORE)
    of_copies = _fisher_z(comparison.compare(copies))
    low, lower, median, high = np.quantile(of_copies, [0.05, 0.1, 0.5, 0.75]).tolist()
    groups, _ = _connect(comparison, lowest_score, low, low, is_final=False)
    of_neighbors = min(_highest_of_neighbors(comparison, lower), median)
    of_sample = _highest_of_random_pairs(comparison, groups)
    between = of_sample + max(0.95 * (low - of_sample), _MARGIN)  # neighbors are more alike
    limit = max(between, of_neighbors, _LOWEST_LIMIT)
    return _connect(comparison, lowest_score, limit, max(limit, high), is_final=True)[1]


def _highest_of_neighbors(comparison: _Comparison, lower: float) -> float:
    """The limit that Fisher's z of neighbors that are no copies hardly ever exceeds.

    Their distribution is nearly normal. Neighbors below ``lower`` count as no copies.
    """
    pairs = (p for p in comparison.results.values() if p.first < comparison.count)
    others = _fisher_z(pair for pair in pairs if np.arctanh(pair.similarity) < lower)
    if len(others) < _FEWEST_NEIGHBORS:
        return _LOWEST_LIMIT
    middle, upper = np.quantile(others, [0.5, 0.75])
    deviations = norm.isf(_FALSE_PAIRS / len(others)) / norm.isf(0.25)
    return float(middle + (upper - middle) * deviations)


def _highest_of_random_pairs(comparison: _Comparison, groups: Groups) -> float:
    """The limit that Fisher's z of random pairs hardly ever exceeds.

    Their tail is taken as exponential. The highest values do not count, since the patients may be
    unknown and some of these pairs copies nevertheless.
    """
    pairs = comparison.random_pairs(groups)
    ranked = np.argsort(-comparison.scores(pairs), kind="stable")[:_NUM_COMPARED]
    tail = np.sort(_fisher_z(comparison.compare([pairs[k] for k in ranked])))[::-1]
    end = min(len(pairs) // 50, len(tail) // 2)
    start = end // 8
    if end <= start:
        return _LOWEST_LIMIT
    slope = max(float(tail[start] - tail[end]) / np.log((end + 1) / (start + 1)), _SMALLEST_SLOPE)
    return float(tail[start] + slope * np.log(start + 1))


def _connect(
    comparison: _Comparison, lowest_score: float, limit: float, of_patient: float, is_final: bool
) -> tuple[Groups, list[NearDuplicate]]:
    """Groups of images with the same content, and the pairs that connect them; also exposures.

    Pairs whose Fisher's z reaches ``limit`` are duplicates, or exposures if they are of one patient
    and below ``of_patient``. Images are compared with more neighbors if some of them are
    duplicates, for which the limit must be final.
    """
    groups, duplicates = Groups(comparison.count), list[NearDuplicate]()
    searched = np.where(comparison.is_searched, _NUM_NEIGHBORS, 0)
    pairs = comparison.neighbors(searched)
    while pairs:
        unknown = sorted(pair for pair in pairs if not groups.is_connected(*pair))
        scores = comparison.scores(unknown)
        order = [k for k in np.argsort(-scores, kind="stable") if scores[k] >= lowest_score]
        parts = list(_batches([unknown[k] for k in order], _TOGETHER))
        for part in track(parts, "comparing details", disable=len(parts) < 8):
            for pair in comparison.compare([p for p in part if not groups.is_connected(*p)]):
                z = np.arctanh(pair.similarity)
                is_exposure = z < of_patient and comparison.is_same_patient(pair[:2])
                if z >= limit and not is_exposure:
                    groups.connect(*pair[:2])
                duplicates += [pair._replace(is_exposure=is_exposure)] * bool(z >= limit)
        if not is_final:
            break
        wanted = np.minimum(_NUM_NEIGHBORS + groups.sizes() - 1, _MOST_NEIGHBORS)
        wanted = np.where(comparison.is_searched, wanted, 0)
        pairs = comparison.neighbors(np.where(wanted > searched, wanted, 0))
        searched = np.maximum(wanted, searched)
    return groups, duplicates


def _batches(items: list[Pair], size: int) -> Iterable[list[Pair]]:
    return (items[k : k + size] for k in range(0, len(items), size))


def _fisher_z(pairs: Iterable[NearDuplicate]) -> np.ndarray:
    """Fisher's z (n,) of the similarities of n pairs."""
    return np.arctanh([pair.similarity for pair in pairs])


def _project(
    descriptors: np.ndarray, originals: np.ndarray, count: int, is_used: np.ndarray
) -> np.ndarray:
    """float32 (n, zooms, ``_DIMENSIONS``) of descriptors (n, zooms, d), for distances.

    They are scaled by how little copies change them, then projected to their principal axes.
    """
    copies = descriptors[count:][is_used, :1]
    changes = copies - descriptors[originals[is_used]]
    best = np.square(changes).sum(axis=2).argmin(axis=1)
    scaled = descriptors / (changes[np.arange(len(best)), best].std(axis=0) + 0.05)
    scaled -= scaled[:count, 0].mean(axis=0)
    _, axes = np.linalg.eigh(scaled[:count, 0].T @ scaled[:count, 0])
    return np.asarray(scaled @ axes[:, -_DIMENSIONS:], dtype=np.float32)


def _min_squared_distances(sets: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Smallest squared Euclidean distances (b, n) over pairs of arrays (b, d) and (n, d)."""
    count = len(sets[0][1])
    distances = np.empty((len(sets[0][0]), count), np.float32)
    first = [np.hstack([a, np.ones((len(a), 1), a.dtype), _squared_norms(a)]) for a, _ in sets]
    for start in range(0, count, _TILE):  # products of this size stay in the processor's cache
        tile = slice(start, start + _TILE)
        others = (b[tile] for _, b in sets)
        second = [
            np.hstack([-2 * b, _squared_norms(b), np.ones((len(b), 1), b.dtype)]) for b in others
        ]
        products = [a @ b.T for a, b in zip(first, second, strict=True)]
        distances[:, tile] = np.minimum.reduce(products)
    return distances


def _squared_norms(points: np.ndarray) -> np.ndarray:
    """(n, 1) squared norms of points (n, d)."""
    return np.asarray(np.square(points).sum(axis=1, keepdims=True))


def _argsmallest(distances: np.ndarray, count: int) -> np.ndarray:
    """Column numbers (b, count) of the smallest of distances (b, n) in ascending order.

    They are in the ``count`` groups of columns with the smallest minima, so few must be sorted.
    """
    num_groups = max(count, -(-distances.shape[1] // 64))
    missing = -distances.shape[1] % num_groups
    padded = np.pad(distances, ((0, 0), (0, missing)), constant_values=np.inf)
    minima = padded.reshape(len(distances), -1, num_groups).min(axis=1)
    groups = np.argpartition(minima, count - 1, axis=1)[:, :count, None]
    columns = (groups + np.arange(0, padded.shape[1], num_groups)).reshape(len(distances), -1)
    order = np.take_along_axis(padded, columns, 1).argsort(axis=1)[:, :count]
    return np.asarray(np.take_along_axis(columns, order, 1))
