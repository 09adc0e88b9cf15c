"""Intervals of figures: Wilson for proportions, patient-clustered bootstrap (BCa) for the rest."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import ndtr, ndtri

LEVEL = 0.95
DRAWS = 2000
TIE = 1e-12  # rounding in sums and means must not tell equal figures apart
ROUNDING = 1e-6  # of float32 sums: redraws that spread less, beside their value, are all the same
RARE = 10  # patients below which a class is redrawn by itself
_CHUNK = 2_000_000  # numbers held at a time
_GROUPS = 1000  # the jackknife leaves out at most so many groups of patients

Statistic = Callable[[np.ndarray], np.ndarray]
Parts = tuple[float, float, float]  # value, low, high
Sums = Any  # an array or a scipy.sparse matrix; scipy has no types here


@dataclass(frozen=True)
class Figure:
    """A measured value with its interval, how that was made, and on how much.

    `value` None means not measured and `reason` says why; `low` and `high` may be None with a
    reason as well.
    """

    value: float | None
    low: float | None
    high: float | None
    method: str
    n: int
    patients: int
    reason: str = ""


def figure(parts: Parts, method: str, n: int, patients: int, reason: str) -> Figure:
    """A Figure whose NaN parts are None; `reason` is kept only where something is None."""
    plain = [float(x) if np.isfinite(x) else None for x in parts]
    said = reason if None in plain else ""
    return Figure(plain[0], plain[1], plain[2], method, n, patients, said)


def wilson(hits: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of the proportion hits / n; needs n >= 1."""
    z = float(ndtri(0.5 + level / 2))
    p, centre = hits / n, (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * p * (1 - p) + z * z / 4)
    low, high = float(centre - half), float(centre + half)
    return 0.0 if hits == 0 else max(0.0, low), 1.0 if hits == n else min(1.0, high)


@dataclass(frozen=True)
class Clusters:
    """Which patient each row belongs to, and the stratum within which a patient is redrawn."""

    of_row: np.ndarray
    stratum: np.ndarray

    @classmethod
    def make(cls, patients: np.ndarray, labels: np.ndarray) -> "Clusters":
        """Patients of a rare class (fewer than 10 have it) are redrawn among themselves.

        So no class is lost from a draw. All others are redrawn together: how many patients of
        a class a test set holds is itself chance, and precision, F1 or accuracy move with it.
        Strata for every class would leave that out (precision held in 80 % instead of 95 %).
        A patient's class is the rarest overall among the labels of the patient's images.
        """
        codes, of_row = np.unique(patients.astype(str), return_inverse=True)
        classes, label = np.unique(labels, return_inverse=True)
        rarity = np.argsort(np.argsort(np.bincount(label), kind="stable"))
        rank = np.full(len(codes), len(classes))
        np.minimum.at(rank, of_row, rarity[label])
        common = np.bincount(rank, minlength=len(classes))[rank] >= RARE
        return cls(of_row, np.where(common, -1, rank))

    @property
    def count(self) -> int:
        """Number of patients."""
        return len(self.stratum)

    @property
    def single(self) -> bool:
        """True where every patient has one row."""
        return self.count == len(self.of_row)

    @property
    def strata(self) -> bool:
        """True where patients of a rare class are redrawn among themselves."""
        return bool((self.stratum >= 0).any())

    @property
    def whole(self) -> "Clusters":
        """The same patients, all redrawn together: for figures in which classes weigh by images.

        How many patients of a rare class there are is chance as well.
        """
        return Clusters(self.of_row, np.full_like(self.stratum, -1))

    def total(self, rows: Sums) -> Sums:
        """Sums (n, d) over each patient's rows: (patients, d), sparse where `rows` are."""
        return _gathered(rows, self.of_row, self.count)

    def draws(self, draws: int, seed: int) -> np.ndarray:
        """How often each patient is drawn, (patients, draws), each stratum kept in size.

        The same seed gives the same draws, so models drawn in turn are paired.
        """
        return _drawn(self.stratum.astype(np.int64).tobytes(), draws, seed)


@lru_cache(maxsize=2)  # every table of one council is redrawn in the same way
def _drawn(stratum: bytes, draws: int, seed: int) -> np.ndarray:
    of_patient = np.frombuffer(stratum, np.int64)
    counts = np.empty((len(of_patient), draws), np.uint8)
    rng = np.random.default_rng(seed)
    for each in np.unique(of_patient):
        members = np.flatnonzero(of_patient == each)
        step = max(1, _CHUNK // len(members))
        for start in range(0, draws, step):
            size = min(step, draws - start)
            counts[members, start : start + size] = _multinomial(len(members), size, rng)
    counts.flags.writeable = False  # it is kept for the next table
    return counts


def _multinomial(members: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.integers(0, members, (draws, members), dtype=np.int32)
    drawn += np.arange(draws, dtype=np.int32)[:, None] * members
    return np.bincount(drawn.ravel(), minlength=draws * members).reshape(draws, members).T


@dataclass(frozen=True)
class Replicates:
    """Values of m statistics: observed (m,), redrawn (draws, m), patients left out (groups, m)."""

    value: np.ndarray
    redrawn: np.ndarray
    left_out: np.ndarray

    def lacking(self, at: int) -> bool:
        """Whether statistic `at` has no value, or too few draws have one."""
        usable = np.isfinite(self.redrawn[:, at]).mean()
        return bool(usable < 0.9 or not np.isfinite(self.value[at]))

    def alike(self, at: int) -> bool:
        """Whether all draws of statistic `at` are the same, which says nothing of its spread."""
        return not self.lacking(at) and bool(
            np.ptp(self._usable(at)) <= ROUNDING * abs(self.value[at])
        )

    def interval(self, at: int, level: float = LEVEL) -> tuple[float, float]:
        """The BCa interval of statistic `at`; NaN when draws lack it or are all the same."""
        if self.lacking(at) or self.alike(at):
            return np.nan, np.nan
        usable, left = self._usable(at), self.left_out[:, at]
        return bca(float(self.value[at]), usable, left[np.isfinite(left)], level)

    def _usable(self, at: int) -> np.ndarray:
        redrawn = self.redrawn[:, at]
        return np.asarray(redrawn[np.isfinite(redrawn)])

    def centred(self, at: int, level: float = LEVEL) -> tuple[float, float]:
        """Percentiles of the draws moved back onto the value; NaN as for `interval`.

        For calibration errors: redrawing adds noise that they cannot but count, and BCa would
        take the value itself for a lucky one.
        """
        low, high = self.interval(at, level)
        if np.isnan(low):
            return low, high
        redrawn = self.redrawn[:, at]
        shift = self.value[at] - np.nanmean(redrawn)
        ends = np.nanquantile(redrawn, [0.5 - level / 2, 0.5 + level / 2]) + shift
        return float(ends[0]), float(ends[1])


def bootstrap(
    sums: Sums,
    statistic: Statistic,
    clusters: Clusters,
    draws: int = DRAWS,
    seed: int = 0,
) -> Replicates:
    """Redraws patients within strata; `statistic` maps summed columns (r, d) to values (r, m).

    `sums` is (patients, d). Each draw is a column of counts, so all draws are one matrix product.
    """
    total = np.ones((1, clusters.count)) @ sums
    counts, rounded = clusters.draws(draws, seed), sums.astype(np.float32).T
    step = max(1, min(5 * _CHUNK // sums.shape[0], _CHUNK // sums.shape[1]))

    def some(start: int) -> np.ndarray:
        # float32 halves the time, and counts below 2 ** 24 are exact in it
        drawn = rounded @ counts[:, start : start + step].astype(np.float32)
        return statistic(drawn.T.astype(float))

    with ThreadPoolExecutor(2) as pool:
        redrawn = list(pool.map(some, range(0, draws, step)))
    left_out = statistic(total - _groups(sums, seed))
    return Replicates(statistic(total)[0], np.concatenate(redrawn), left_out)


def _groups(sums: Sums, seed: int) -> np.ndarray:
    """Sums of at most 1000 random groups of patients, for the jackknife."""
    count = sums.shape[0]
    groups = min(count, _GROUPS)
    gathered = _gathered(sums, np.random.default_rng(seed).permutation(count) % groups, groups)
    return gathered if isinstance(gathered, np.ndarray) else np.asarray(gathered.toarray())


def _gathered(rows: Sums, group: np.ndarray, groups: int) -> Sums:
    n = len(group)
    gather = csr_matrix((np.ones(n), (group, np.arange(n))), shape=(groups, n))
    found: Sums = gather @ rows
    return found


def bca(
    value: float, redrawn: np.ndarray, left_out: np.ndarray, level: float = LEVEL
) -> tuple[float, float]:
    """Efron's bias-corrected and accelerated interval from draws and a jackknife."""
    gap = redrawn - value
    below = np.mean(gap < -TIE) + np.mean(np.abs(gap) <= TIE) / 2
    bias = ndtri(np.clip(below, 1 / (len(redrawn) + 1), len(redrawn) / (len(redrawn) + 1)))
    gaps = left_out.mean() - left_out
    spread = np.sum(gaps**2) ** 1.5
    acceleration = np.sum(gaps**3) / (6 * spread) if spread > 0 else 0.0
    z = bias + ndtri(np.array([0.5 - level / 2, 0.5 + level / 2]))
    at = ndtr(bias + z / (1 - acceleration * z))
    low, high = np.quantile(redrawn, at)
    return float(low), float(high)
