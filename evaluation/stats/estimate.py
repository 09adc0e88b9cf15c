"""Intervals of figures: Wilson for proportions, patient-clustered bootstrap (BCa) for the rest."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from evaluation.stats.clusters import CHUNK, Clusters, Sums, gathered

LEVEL = 0.95
DRAWS = 2000
TIE = 1e-12  # rounding in sums and means must not tell equal figures apart
ROUNDING = 1e-6  # of float32 sums: redraws that spread less, beside their value, are all the same
_GROUPS = 1000  # the jackknife leaves out at most so many groups of patients

Statistic = Callable[[np.ndarray], np.ndarray]
Parts = tuple[float, float, float]  # value, low, high


@dataclass(frozen=True)
class Estimate:
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


def make_estimate(parts: Parts, method: str, n: int, patients: int, reason: str) -> Estimate:
    """A Figure whose NaN parts are None; `reason` is kept only where something is None."""
    plain = [float(x) if np.isfinite(x) else None for x in parts]
    said = reason if None in plain else ""
    return Estimate(plain[0], plain[1], plain[2], method, n, patients, said)


def wilson(hits: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of the proportion hits / n; needs n >= 1."""
    z = float(ndtri(0.5 + level / 2))
    p, center = hits / n, (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * p * (1 - p) + z * z / 4)
    low, high = float(center - half), float(center + half)
    return 0.0 if hits == 0 else max(0.0, low), 1.0 if hits == n else min(1.0, high)


@dataclass(frozen=True)
class Replicates:
    """Values of m statistics: observed (m,), redrawn (draws, m), patients left out (groups, m)."""

    value: np.ndarray
    redrawn: np.ndarray
    left_out: np.ndarray

    def only(self, at: int, wider: float = 1.0) -> "Replicates":
        """Statistic `at` alone, its draws as many times as far from its value."""
        value, redrawn, left_out = self.value[[at]], self.redrawn[:, [at]], self.left_out[:, [at]]
        return Replicates(value, value + wider * (redrawn - value), left_out)

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

    def percentiles(self, at: int, level: float = LEVEL) -> tuple[float, float]:
        """Percentiles of the draws; NaN as for `interval`."""
        if self.lacking(at) or self.alike(at):
            return np.nan, np.nan
        low, high = np.quantile(self._usable(at), [0.5 - level / 2, 0.5 + level / 2])
        return float(low), float(high)

    def centerd(self, at: int, level: float = LEVEL) -> tuple[float, float]:
        """Percentiles of the draws moved back onto the value; NaN as for `interval`.

        For calibration errors: redrawing adds noise that they cannot but count, and BCa would
        take the value itself for a lucky one.
        """
        low, high = self.percentiles(at, level)
        if np.isnan(low):
            return low, high
        shift = float(self.value[at] - np.nanmean(self.redrawn[:, at]))
        return low + shift, high + shift


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
    step = max(1, min(5 * CHUNK // sums.shape[0], CHUNK // sums.shape[1]))

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
    found = gathered(sums, np.random.default_rng(seed).permutation(count) % groups, groups)
    return found if isinstance(found, np.ndarray) else np.asarray(found.toarray())


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
