"""Voters: several members' probabilities become the council's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evaluation.table import PredictionTable, align


class Voter(Protocol):
    """What every voter offers: probabilities (members, n, K) become probabilities (n, K)."""

    @property
    def name(self) -> str:
        """The word by which configs and reports call it."""

    def __call__(self, members: np.ndarray) -> np.ndarray:
        """Pools the members; each row of the answer sums to 1."""


@dataclass(frozen=True)
class Soft:
    """The mean of the members' probabilities."""

    name: str = "soft"

    def __call__(self, members: np.ndarray) -> np.ndarray:
        """Mean over the first axis."""
        return np.asarray(members.mean(axis=0))


def stack(tables: Sequence[PredictionTable]) -> np.ndarray:
    """Probabilities (members, n, K) of tables, aligned by id and class name."""
    return np.stack([table.probabilities for table in align(tables)])


def pool(voter: Voter, tables: Sequence[PredictionTable]) -> PredictionTable:
    """The council's own prediction table, in the row order of the first member's."""
    first = align(tables)[0]
    return first.with_probabilities(voter(stack(tables)))
