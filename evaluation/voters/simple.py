"""Voters that need no fitting, and what every voter is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from scipy.special import softmax

from evaluation.predictions import PredictionTable, align

FLOOR = 1e-30  # below any probability that float32 logits can tell from 0


class Voter(Protocol):
    """Members' probabilities (members, n, K) become the ensemble's (n, K), rows summing to 1.

    A voter whose `attribute` is not empty needs the value of that attribute for each image in
    `parts` (n,).
    """

    @property
    def kind(self) -> str:
        """The word by which configs, files and reports call it."""

    @property
    def attribute(self) -> str:
        """The attribute whose values it must be given, or ''."""

    def __call__(self, members: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
        """Pools the members."""


@dataclass(frozen=True)
class Soft:
    """The mean of the members' probabilities."""

    kind: ClassVar[str] = "soft"
    attribute: ClassVar[str] = ""

    def __call__(self, members: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
        """Mean over the first axis."""
        return np.asarray(members.mean(axis=0))


@dataclass(frozen=True)
class Geometric:
    """The members' geometric mean, normalized."""

    kind: ClassVar[str] = "geometric"
    attribute: ClassVar[str] = ""

    def __call__(self, members: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
        """Softmax of the mean log-probability."""
        return np.asarray(softmax(logs(members).mean(axis=0), axis=1))


@dataclass(frozen=True)
class Majority:
    """The share of members that vote for each class; ties go to the larger mean probability.

    A thousandth of the mean probability is mixed in: it breaks ties and keeps the NLL finite.
    """

    kind: ClassVar[str] = "majority"
    attribute: ClassVar[str] = ""

    def __call__(self, members: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
        """Votes over the first axis."""
        votes = np.eye(members.shape[2])[members.argmax(axis=2)].mean(axis=0)
        return np.asarray(0.999 * votes + 0.001 * members.mean(axis=0))


@dataclass(frozen=True)
class Weighted:
    """The mean of the members' probabilities under weights (members,), scaled to sum to 1."""

    weights: np.ndarray
    kind: ClassVar[str] = "weighted"
    attribute: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", convex(self.weights))

    def __call__(self, members: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
        """Weighted sum over the first axis."""
        check_members(members, len(self.weights))
        return np.asarray(np.einsum("m,mnk->nk", self.weights, members))


def convex(weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Weights over the last axis, scaled to sum to 1; negative or all-zero ones are refused."""
    w = np.asarray(weights, float)
    total = w.sum(axis=-1, keepdims=True)
    if not (np.isfinite(w).all() and (w >= 0).all() and (total > 0).all()):
        raise ValueError(f"weights {w.tolist()}: each must be >= 0 and one must be > 0")
    # sums that are 1 but for rounding stay, so that reading weights back changes no bit
    return np.asarray(np.where(np.abs(total - 1) < 1e-12, w, w / total))


def logs(probabilities: np.ndarray) -> np.ndarray:
    """Logarithm with a floor, so that a probability of 0 stays finite."""
    return np.asarray(np.log(np.maximum(probabilities, FLOOR)))


def check_members(members: np.ndarray, wanted: int) -> None:
    """Refuses another number of members than a voter was fitted for."""
    if members.ndim != 3 or len(members) != wanted:
        raise ValueError(f"members have shape {members.shape}; this voter has {wanted} members")


def stack(tables: Sequence[PredictionTable]) -> np.ndarray:
    """Probabilities (members, n, K) of tables, aligned by id and class name."""
    return np.stack([table.probabilities for table in align(tables)])


def pool(voter: Voter, tables: Sequence[PredictionTable]) -> PredictionTable:
    """The ensemble's own prediction table, in the row and class order of the first member's."""
    aligned = align(tables)
    members = np.stack([table.probabilities for table in aligned])
    return aligned[0].with_probabilities(voter(members, parts_of(voter, aligned[0])))


def parts_of(voter: Voter, table: PredictionTable) -> np.ndarray | None:
    """The attribute that the voter needs, for each row; an image without it is named."""
    name = voter.attribute
    if not name:
        return None
    if name not in table.attributes:
        raise ValueError(f"voter {voter.kind!r} needs attribute {name!r}; has {table.attributes}")
    parts = table.rows[name].fillna("").astype(str).to_numpy(dtype=object)
    if (parts == "").any():
        ids = table.rows["id"][parts == ""]
        raise ValueError(f"{len(ids)} images lack {name!r}, first {ids.iloc[0]!r}")
    return parts
