"""The base of all voters, voters that need no fitting, and the pooling of prediction tables."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.special import softmax

from evaluation.metrics.calibration import Calibration
from evaluation.predictions import PredictionTable, align, cell_text, safe_log

UNCALIBRATED = Calibration()


class Voter(ABC):
    """Combines the members' probabilities (members, n, K) into (n, K) with rows summing to 1.

    `name` is its name in `VOTERS`. A voter with a nonempty `attribute` needs that attribute's
    value of each image, `groups` (n,). By default each member counts the same.
    """

    name: ClassVar[str]
    attribute: str = ""

    @abstractmethod
    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Combined probabilities (n, K)."""

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """Weight (n, members) of each member in the score of a class (n,); rows sum to 1."""
        return np.full((members.shape[1], len(members)), 1 / len(members))

    def weight_rows(self, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """Member weights (members,) by class or group, "" for all; empty if the voter has none."""
        return {}


class Soft(Voter):
    """Mean of the members' probabilities."""

    name = "soft"

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Mean over the first axis."""
        return np.asarray(members.mean(axis=0))


class Geometric(Voter):
    """Normalized geometric mean of the members' probabilities."""

    name = "geometric"

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Softmax of the mean log-probability."""
        return np.asarray(softmax(safe_log(members).mean(axis=0), axis=1))


class Majority(Voter):
    """Fraction of the members that predict each class."""

    name = "majority"

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Fraction of members that predict each class; the mean probability breaks ties."""
        predicted = np.eye(members.shape[2])[members.argmax(axis=2)].mean(axis=0)
        # also keeps the NLL finite
        return np.asarray(0.999 * predicted + 0.001 * members.mean(axis=0))


@dataclass(frozen=True)
class Weighted(Voter):
    """Mean of the members' probabilities under `weights` (members,), scaled to sum to 1."""

    weights: np.ndarray
    name = "weighted"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", normalized_weights(self.weights))

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Weighted sum over the first axis."""
        check_member_count(members, len(self.weights))
        return np.asarray(np.einsum("m,mnk->nk", self.weights, members))

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """The same weights for each image and class, (n, members)."""
        return np.tile(self.weights, (members.shape[1], 1))

    def weight_rows(self, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """One row, "", for all classes."""
        return {"": self.weights}


def normalized_weights(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Weights scaled to sum to 1 over the last axis; negative or all-zero weights are an error."""
    w = np.asarray(weights, float)
    total = w.sum(axis=-1, keepdims=True)
    if not (np.isfinite(w).all() and (w >= 0).all() and (total > 0).all()):
        raise ValueError(f"weights {w.tolist()}: each must be >= 0 and one must be > 0")
    # a sum that is 1 up to rounding stays, so that saved weights load without changing a bit
    return np.asarray(np.where(np.abs(total - 1) < 1e-12, w, w / total))


def check_member_count(members: np.ndarray, expected: int) -> None:
    """Raises ValueError if `members` (members, n, K) does not have the expected length."""
    if members.ndim != 3 or len(members) != expected:
        raise ValueError(f"members have shape {members.shape}; this voter has {expected} members")


def stacked_probabilities(tables: Sequence[PredictionTable]) -> np.ndarray:
    """Probabilities (members, n, K) of tables, aligned by id and class name."""
    return np.stack([table.probabilities for table in align(tables)])


def pool_tables(
    voter: Voter, tables: Sequence[PredictionTable], calibration: Calibration = UNCALIBRATED
) -> PredictionTable:
    """The voter's calibrated probabilities, as a copy of the first table."""
    first = tables[0]
    groups = attribute_values(first, voter.attribute, voter.name) if voter.attribute else None
    return first.with_probabilities(calibration(voter(stacked_probabilities(tables), groups)))


def attribute_values(table: PredictionTable, name: str, voter: str) -> np.ndarray:
    """Attribute `name` of each row as text (n,); ValueError if it is absent or a value empty."""
    if name not in table.attributes:
        raise ValueError(f"voter {voter!r} needs attribute {name!r}; has {table.attributes}")
    values = cell_text(table.rows[name])
    if (is_empty := np.isin(values, ["", "nan"])).any():
        ids = table.rows["id"][is_empty]
        raise ValueError(f"{len(ids)} images lack {name!r}, first {ids.iloc[0]!r}")
    return values
