"""Voters whose convex weights are learned on validation tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import minimize

from evaluation.pooling import FLOOR, Weighted, check_members, convex, stack
from evaluation.table import PredictionTable, refuse_test

SHRINKAGE = 100.0  # rows at which a part's own weights count as much as everybody's
ENOUGH = 50  # positives below which a class takes everybody's weights


@dataclass(frozen=True)
class Learned(Weighted):
    """The convex weights of least NLL on validation."""

    kind: ClassVar[str] = "learned"


@dataclass(frozen=True)
class Greedy(Weighted):
    """Weights by Caruana's selection with replacement, scored by NLL.

    `optimism` is the NLL on the other half of the patients minus that on the half chosen on.
    """

    optimism: float = 0.0
    kind: ClassVar[str] = "greedy"


@dataclass(frozen=True)
class PerClass:
    """Weights (K, members), one set a class, shrunk towards everybody's; then normalised."""

    weights: np.ndarray
    kind: ClassVar[str] = "per_class"
    attribute: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", convex(self.weights))

    def __call__(self, members: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
        """Pools each class by its own weights."""
        check_members(members, self.weights.shape[1])
        pooled = np.maximum(np.einsum("km,mnk->nk", self.weights, members), FLOOR)
        return np.asarray(pooled / pooled.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class PerPart:
    """Weights (values, members) for each value of an attribute; an unseen value gets `common`.

    A part's weights are s x its own + (1 - s) x common with s = n / (n + 100).
    """

    attribute: str
    values: list[str]
    weights: np.ndarray
    common: np.ndarray
    kind: ClassVar[str] = "per_part"

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", convex(self.weights))
        object.__setattr__(self, "common", convex(self.common))

    def __call__(self, members: np.ndarray, parts: np.ndarray | None = None) -> np.ndarray:
        """Pools each image by the weights of its part."""
        check_members(members, len(self.common))
        return np.asarray(np.einsum("nm,mnk->nk", self.of(given(self.attribute, parts)), members))

    def of(self, parts: np.ndarray) -> np.ndarray:
        """The weights of each image, (n, members)."""
        at = {value: i for i, value in enumerate(self.values)}
        table = np.vstack([self.weights, self.common])
        return np.asarray(table[[at.get(str(part), -1) for part in parts]])


def given(attribute: str, parts: np.ndarray | None) -> np.ndarray:
    """The parts, or an error that says what is lacking and where."""
    if parts is None:
        raise ValueError(f"this voter needs the attribute {attribute!r} of each image")
    lacking = [row for row, part in enumerate(parts) if part is None or str(part) in ("", "nan")]
    if lacking:
        raise ValueError(f"{len(lacking)} images lack {attribute!r}, at rows {lacking[:5]}")
    return parts


def fit_learned(tables: Sequence[PredictionTable]) -> Learned:
    """Convex weights of least NLL; the problem is convex, so there is one least value."""
    own, _ = likelihoods(tables, "learned weights")
    return Learned(least_nll(own))


def fit_greedy(tables: Sequence[PredictionTable], rounds: int = 50) -> Greedy:
    """Adds the member that lowers the NLL most, with replacement; ties go to the first named."""
    own, table = likelihoods(tables, "greedy selection")
    patients = np.unique(table.patients.astype(str), return_inverse=True)[1]
    half = np.random.default_rng(0).permutation(patients.max() + 1)[patients] % 2 == 0
    gaps = []
    for chosen in (half, ~half):
        if chosen.any() and (~chosen).any():
            w = _select(own[:, chosen], rounds)
            gaps.append(_nll(w @ own[:, ~chosen]) - _nll(w @ own[:, chosen]))
    return Greedy(_select(own, rounds), float(np.mean(gaps)) if gaps else 0.0)


def fit_per_class(
    tables: Sequence[PredictionTable], shrinkage: float = SHRINKAGE, enough: int = ENOUGH
) -> PerClass:
    """Each class's weights minimise its own log loss against the rest, then are shrunk."""
    own, table = likelihoods(tables, "per-class weights")
    members, common = stack([t.labelled for t in tables]), least_nll(own)
    rows = []
    for c in range(len(table.class_names)):
        positive = table.labels == c
        n = int(positive.sum())
        share = n / (n + shrinkage) if n >= enough else 0.0
        alone = np.where(positive, members[:, :, c], 1 - members[:, :, c])
        rows.append(share * least_nll(alone) + (1 - share) * common if share else common)
    return PerClass(np.stack(rows))


def fit_per_part(
    tables: Sequence[PredictionTable], attribute: str = "body_part", shrinkage: float = SHRINKAGE
) -> PerPart:
    """Weights of least NLL for each value of the attribute, shrunk towards those of all rows."""
    own, table = likelihoods(tables, f"weights per {attribute}")
    if attribute not in table.attributes:
        raise ValueError(f"attribute {attribute!r} is not among {table.attributes}")
    parts = given(attribute, table.rows[attribute].fillna("").astype(str).to_numpy(dtype=object))
    common, values = least_nll(own), sorted(set(parts))
    rows = []
    for value in values:
        here = parts == value
        share = here.sum() / (here.sum() + shrinkage)
        rows.append(share * least_nll(own[:, here]) + (1 - share) * common)
    return PerPart(attribute, [str(v) for v in values], np.stack(rows), common)


def likelihoods(tables: Sequence[PredictionTable], what: str) -> tuple[np.ndarray, PredictionTable]:
    """Each member's probability of each label, (members, n), and the first table; not of test."""
    for table in tables:
        refuse_test(table, what)
    known = [table.labelled for table in tables]
    members = stack(known)
    own = members[:, np.arange(len(known[0])), known[0].labels]
    return np.maximum(own, FLOOR), known[0]


def least_nll(own: np.ndarray) -> np.ndarray:
    """Convex weights w (members,) that minimise -mean log(w @ own)."""
    members = len(own)
    own = own / own.max(axis=0)  # a factor of each image changes no weight

    def nll(w: np.ndarray) -> tuple[float, np.ndarray]:
        mixed = np.maximum(w @ own, FLOOR)
        return _nll(mixed), -(own / mixed).mean(axis=1)

    found = minimize(
        nll,
        np.full(members, 1 / members),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * members,
        options={"ftol": 1e-12, "maxiter": 500},
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": np.ones_like},
    )
    return convex(np.where(found.x > 1e-9, found.x, 0.0))


def _select(own: np.ndarray, rounds: int) -> np.ndarray:
    """Counts of the best prefix of a greedy selection, as weights."""
    counts, best, least = np.zeros(len(own)), np.zeros(len(own)), np.inf
    for size in range(1, rounds + 1):
        tried = (counts @ own + own) / size
        losses = -np.log(tried).mean(axis=1)
        counts[int(losses.argmin())] += 1
        if losses.min() < least - 1e-12:
            best, least = counts.copy(), float(losses.min())
    return convex(best)


def _nll(own: np.ndarray) -> float:
    return float(-np.log(own).mean())
