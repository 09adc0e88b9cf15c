"""Which patient each row belongs to, and how often each patient is drawn."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

RARE = 10  # patients below which a class is redrawn by itself
CHUNK = 2_000_000  # numbers held at a time

Sums = Any  # an array or a scipy.sparse matrix; scipy has no types here


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
        return gathered(rows, self.of_row, self.count)

    def holding(self, rows: np.ndarray) -> np.ndarray:
        """How many patients have a row that is true, in each column of (n, d): (d,)."""
        return np.asarray((self.total(rows.astype(float)) > 0).sum(axis=0))

    def draws(self, draws: int, seed: int) -> np.ndarray:
        """How often each patient is drawn, (patients, draws), each stratum kept in size.

        The same seed gives the same draws, so models drawn in turn are paired.
        """
        return _drawn(self.stratum.astype(np.int64).tobytes(), draws, seed)


@lru_cache(maxsize=2)  # every table of one ensemble is redrawn in the same way
def _drawn(stratum: bytes, draws: int, seed: int) -> np.ndarray:
    of_patient = np.frombuffer(stratum, np.int64)
    counts = np.empty((len(of_patient), draws), np.uint8)
    rng = np.random.default_rng(seed)
    for each in np.unique(of_patient):
        members = np.flatnonzero(of_patient == each)
        step = max(1, CHUNK // len(members))
        for start in range(0, draws, step):
            size = min(step, draws - start)
            counts[members, start : start + size] = _multinomial(len(members), size, rng)
    counts.flags.writeable = False  # it is kept for the next table
    return counts


def _multinomial(members: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    drawn = rng.integers(0, members, (draws, members), dtype=np.int32)
    drawn += np.arange(draws, dtype=np.int32)[:, None] * members
    return np.bincount(drawn.ravel(), minlength=draws * members).reshape(draws, members).T


def gathered(rows: Sums, group: np.ndarray, groups: int) -> Sums:
    """Sums (groups, d) of the rows (n, d) of each group (n,)."""
    n = len(group)
    gather = csr_matrix((np.ones(n), (group, np.arange(n))), shape=(groups, n))
    found: Sums = gather @ rows
    return found
