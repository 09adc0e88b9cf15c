"""Voters whose convex weights are learned on validation tables."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import OptimizeResult, minimize

from evaluation.predictions import PredictionTable, align, refuse_test
from evaluation.voters.likelihood import Pool, nll, stepped
from evaluation.voters.simple import FLOOR, Weighted, check_members, convex

SHRINKAGE = 100.0  # rows at which a part's own weights count as much as everybody's
ENOUGH = 50  # positives below which a class takes everybody's weights


@dataclass(frozen=True)
class Learned(Weighted):
    """The convex weights of least NLL on validation, judged at the pool's best temperature."""

    kind: ClassVar[str] = "learned"


@dataclass(frozen=True)
class Greedy(Weighted):
    """Weights by Caruana's selection with replacement, scored by NLL.

    `optimizm` is the NLL on the other half of the patients minus that on the half chosen on.
    """

    optimizm: float = 0.0
    kind: ClassVar[str] = "greedy"


@dataclass(frozen=True)
class PerClass:
    """Weights (K, members), one set a class, shrunk towards everybody's; then normalized."""

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
    """The convex weights of `least_nll`."""
    members, table = fitting(tables, "learned weights")
    return Learned(least_nll(members, table.labels))


def fit_greedy(tables: Sequence[PredictionTable], rounds: int = 40) -> Greedy:
    """Adds the member that lowers the NLL most, with replacement; ties go to the first named."""
    members, table = fitting(tables, "greedy selection")
    patients = np.unique(table.patients.astype(str), return_inverse=True)[1]
    half = np.random.default_rng(0).permutation(patients.max() + 1)[patients] % 2 == 0
    gaps = []
    for chosen in (half, ~half):
        if chosen.any() and (~chosen).any():
            seen = Pool(members[:, chosen], table.labels[chosen])
            unseen = Pool(members[:, ~chosen], table.labels[~chosen])
            weights, b = _select(seen, rounds)
            gaps.append(unseen.loss(weights, b)[0] - seen.loss(weights, b)[0])
    optimizm = float(np.mean(gaps)) if gaps else 0.0
    return Greedy(_select(Pool(members, table.labels), rounds)[0], optimizm)


def fit_per_class(
    tables: Sequence[PredictionTable], shrinkage: float = SHRINKAGE, enough: int = ENOUGH
) -> PerClass:
    """Each class's weights minimize its own log loss against the rest, then are shrunk."""
    members, table = fitting(tables, "per-class weights")
    common, rows = least_nll(members, table.labels), []
    for c in range(len(table.class_names)):
        positive = table.labels == c
        n = int(positive.sum())
        share = n / (n + shrinkage) if n >= enough else 0.0
        against = np.stack([1 - members[:, :, c], members[:, :, c]], axis=2)
        own = least_nll(against, positive.astype(int)) if share else common
        rows.append(share * own + (1 - share) * common)
    return PerClass(np.stack(rows))


def fit_per_part(
    tables: Sequence[PredictionTable], attribute: str = "body_part", shrinkage: float = SHRINKAGE
) -> PerPart:
    """Weights of least NLL for each value of the attribute, shrunk towards those of all rows."""
    members, table = fitting(tables, f"weights per {attribute}")
    if attribute not in table.attributes:
        raise ValueError(f"attribute {attribute!r} is not among {table.attributes}")
    parts = given(attribute, table.rows[attribute].fillna("").astype(str).to_numpy(dtype=object))
    common, values = least_nll(members, table.labels), sorted(set(parts))
    rows = []
    for value in values:
        here = parts == value
        share = here.sum() / (here.sum() + shrinkage)
        own = least_nll(members[:, here], table.labels[here])
        rows.append(share * own + (1 - share) * common)
    return PerPart(attribute, [str(v) for v in values], np.stack(rows), common)


def fitting(tables: Sequence[PredictionTable], what: str) -> tuple[np.ndarray, PredictionTable]:
    """Members (members, n, K) on the labeled rows, and the first table of them; not of test."""
    for table in tables:
        refuse_test(table, what)
    known = align([table.labeled for table in tables])
    return np.stack([table.probabilities for table in known]), known[0]


def least_nll(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Convex weights (members,) whose pool has the least NLL once its temperature is fitted.

    A pool is calibrated after pooling, so it is judged as it will be used: weights that suit
    the uncalibrated pool favor single sure members over a good mixture that is merely hesitant.
    The search starts at equal weights and near each end, and keeps the least.
    """
    pool, count = Pool(members, labels), len(members)
    equal = np.full(count, 1 / count)
    alone = [pool.loss(corner, 1.0)[0] for corner in np.eye(count)]
    starts = [equal, 0.8 * np.eye(count)[int(np.argmin(alone))] + 0.2 * equal]
    found = [_descended(pool, start) for start in starts]
    best = min(found, key=lambda each: float(each.fun)).x[:-1]
    return convex(np.where(best > 1e-9, best, 0.0))


def _descended(pool: Pool, start: np.ndarray) -> OptimizeResult:
    b = stepped(pool.logs(start), pool.labels, 1.0, steps=6)
    sum_to_one = {
        "type": "eq",
        "fun": lambda x: x[:-1].sum() - 1,
        "jac": lambda x: np.append(np.ones(len(x) - 1), 0.0),
    }
    return minimize(
        lambda x: pool.loss(x[:-1], x[-1]),
        np.append(start, b),
        jac=True,
        method="SLSQP",
        bounds=[(0, 1)] * len(start) + [(0.05, 20)],
        options={"ftol": 1e-10, "maxiter": 200},
        constraints=sum_to_one,
    )


def _select(pool: Pool, rounds: int, patience: int = 5) -> tuple[np.ndarray, float]:
    """Weights of the best prefix of a greedy selection, and their inverse temperature."""
    counts, best, least = np.zeros(len(pool)), (np.zeros(len(pool)), 1.0), np.inf
    b, best_size = 1.0, 0
    for size in range(1, rounds + 1):
        tried = [(counts + one) / size for one in np.eye(len(pool))]
        losses = [nll(pool.logs(weights), pool.labels, b) for weights in tried]
        chosen = tried[int(np.argmin(losses))]
        counts, logs = chosen * size, pool.logs(chosen)
        b = stepped(logs, pool.labels, b)
        loss = nll(logs, pool.labels, b)
        if loss < least - 1e-9:
            best, least, best_size = (chosen, b), loss, size
        if size - best_size >= patience:
            break
    return convex(best[0]), best[1]
