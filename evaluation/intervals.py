"""Intervals of figures: Wilson for proportions, patient-clustered bootstrap (BCa) for the rest."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix
from scipy.special import ndtr, ndtri

LEVEL = 0.95
DRAWS = 2000
_CHUNK = 2_000_000  # resampling counts held at a time
_GROUPS = 1000  # the jackknife leaves out at most so many groups of patients

Statistic = Callable[[np.ndarray], np.ndarray]


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


def wilson(hits: float, n: int, level: float = LEVEL) -> tuple[float, float]:
    """Wilson's score interval of the proportion hits / n; needs n >= 1."""
    z = float(ndtri(0.5 + level / 2))
    p, centre = hits / n, (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * p * (1 - p) + z * z / 4)
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))


@dataclass(frozen=True)
class Clusters:
    """Which patient each row belongs to, and the stratum within which a patient is redrawn."""

    of_row: np.ndarray
    stratum: np.ndarray

    @classmethod
    def make(cls, patients: np.ndarray, labels: np.ndarray) -> "Clusters":
        """A patient's stratum is the class that is rarest overall among the patient's labels."""
        codes, of_row = np.unique(patients.astype(str), return_inverse=True)
        classes, label = np.unique(labels, return_inverse=True)
        rarity = np.argsort(np.argsort(np.bincount(label), kind="stable"))
        rank = np.full(len(codes), len(classes))
        np.minimum.at(rank, of_row, rarity[label])
        return cls(of_row, rank)

    @property
    def count(self) -> int:
        """Number of patients."""
        return len(self.stratum)

    @property
    def single(self) -> bool:
        """True where every patient has one row."""
        return self.count == len(self.of_row)

    def total(self, rows: np.ndarray) -> np.ndarray:
        """Sums (n, d) over each patient's rows: (patients, d)."""
        n = len(self.of_row)
        gather = csr_matrix((np.ones(n), (self.of_row, np.arange(n))), shape=(self.count, n))
        return np.asarray(gather @ rows)

    def draws(self, draws: int, seed: int) -> Iterator[np.ndarray]:
        """How often each patient is drawn, (some, patients) at a time, `draws` rows in all.

        The same seed gives the same draws, so two models drawn in turn are paired.
        """
        rng = np.random.default_rng(seed)
        chunk = max(1, min(draws, _CHUNK // self.count))
        for start in range(0, draws, chunk):
            yield self._draw(min(chunk, draws - start), rng)

    def _draw(self, size: int, rng: np.random.Generator) -> np.ndarray:
        weights = np.empty((size, self.count))
        for stratum in np.unique(self.stratum):
            members = np.flatnonzero(self.stratum == stratum)
            drawn = rng.integers(0, len(members), (size, len(members)))
            drawn += np.arange(size)[:, None] * len(members)
            counts = np.bincount(drawn.ravel(), minlength=size * len(members))
            weights[:, members] = counts.reshape(size, -1)
        return weights


@dataclass(frozen=True)
class Replicates:
    """Values of m statistics: observed (m,), redrawn (draws, m), patients left out (groups, m)."""

    value: np.ndarray
    redrawn: np.ndarray
    left_out: np.ndarray

    def interval(self, at: int, level: float = LEVEL) -> tuple[float, float]:
        """The BCa interval of statistic `at`; NaN when too many draws lack it."""
        redrawn = self.redrawn[:, at]
        usable = redrawn[np.isfinite(redrawn)]
        if len(usable) < 0.9 * len(redrawn) or not np.isfinite(self.value[at]):
            return np.nan, np.nan
        left = self.left_out[:, at]
        return bca(float(self.value[at]), usable, left[np.isfinite(left)], level)


def bootstrap(
    sums: np.ndarray,
    statistic: Statistic,
    clusters: Clusters,
    draws: int = DRAWS,
    seed: int = 0,
) -> Replicates:
    """Redraws patients within strata; `statistic` maps summed columns (r, d) to values (r, m).

    `sums` is (patients, d). Each draw is a row of counts, so all draws are one matrix product.
    """
    total = sums.sum(axis=0, keepdims=True)
    redrawn = [statistic(counts @ sums) for counts in clusters.draws(draws, seed)]
    left_out = statistic(total - _groups(sums, seed))
    return Replicates(statistic(total)[0], np.concatenate(redrawn), left_out)


def _groups(sums: np.ndarray, seed: int) -> np.ndarray:
    """Sums of at most 1000 random groups of patients, for the jackknife."""
    count = len(sums)
    groups = min(count, _GROUPS)
    of_patient = np.random.default_rng(seed).permutation(count) % groups
    gather = csr_matrix((np.ones(count), (of_patient, np.arange(count))), shape=(groups, count))
    return np.asarray(gather @ sums)


def bca(
    value: float, redrawn: np.ndarray, left_out: np.ndarray, level: float = LEVEL
) -> tuple[float, float]:
    """Efron's bias-corrected and accelerated interval from draws and a jackknife."""
    below = np.mean(redrawn < value) + np.mean(redrawn == value) / 2
    bias = ndtri(np.clip(below, 1 / (len(redrawn) + 1), len(redrawn) / (len(redrawn) + 1)))
    gaps = left_out.mean() - left_out
    spread = np.sum(gaps**2) ** 1.5
    acceleration = np.sum(gaps**3) / (6 * spread) if spread > 0 else 0.0
    z = bias + ndtri(np.array([0.5 - level / 2, 0.5 + level / 2]))
    at = ndtr(bias + z / (1 - acceleration * z))
    low, high = np.quantile(redrawn, at)
    return float(low), float(high)
