"""Voters whose convex weights minimize the NLL on validation tables, and that objective."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from scipy.optimize import OptimizeResult, minimize
from scipy.special import softmax

from evaluation.predictions import MIN_PROBABILITY, PredictionTable, align, refuse_test, safe_log
from evaluation.voters.simple import Weighted, check_member_count, normalized_weights

SHRINKAGE_ROWS = 100.0  # rows at which own weights count as much as the common ones
MIN_POSITIVES = 50  # a class with fewer positives takes the common weights
ROWS_PER_WEIGHT = 50  # labeled rows that stacking needs for each member and class
WEIGHT_DECAY = 1.0  # squared-weight penalty, in rows


@dataclass(frozen=True)
class Learned(Weighted):
    """Convex weights of least validation NLL after temperature scaling of the pool."""

    name: ClassVar[str] = "learned"


@dataclass(frozen=True)
class Greedy(Weighted):
    """Weights by Caruana's ensemble selection with replacement, scored by NLL.

    `optimism` is the NLL on one half of the patients minus that on the half used for selection.
    """

    optimism: float = 0.0
    name: ClassVar[str] = "greedy"


@dataclass(frozen=True)
class PerClass:
    """Weights (K, members) for each class, shrunk towards common weights."""

    weights: np.ndarray
    name: ClassVar[str] = "per_class"
    attribute: ClassVar[str] = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", normalized_weights(self.weights))

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Pools each class by its own weights and normalizes over classes."""
        check_member_count(members, self.weights.shape[1])
        pooled = np.maximum(np.einsum("km,mnk->nk", self.weights, members), MIN_PROBABILITY)
        return np.asarray(pooled / pooled.sum(axis=1, keepdims=True))

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """The weights of the given class of each image."""
        return np.asarray(self.weights[classes])

    def weight_rows(self, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """One row per class."""
        return dict(zip(class_names, self.weights, strict=True))


@dataclass(frozen=True)
class Stacked:
    """Multinomial logistic regression on the log-probabilities of all members.

    `weights` is (K, members x K) and `bias` (K,).
    """

    weights: np.ndarray
    bias: np.ndarray
    name: ClassVar[str] = "stacked"
    attribute: ClassVar[str] = ""

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Softmax of the regression."""
        check_member_count(members, self.weights.shape[1] // len(self.bias))
        return np.asarray(softmax(_side_by_side(members) @ self.weights.T + self.bias, axis=1))

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """Positive weights of each member's own log-probability of the class; equal if none."""
        k, count = len(self.bias), len(members)
        own = self.weights.reshape(k, count, k)[classes, :, classes].clip(0)
        total = own.sum(axis=1, keepdims=True)
        return np.asarray(np.where(total > 0, own / np.where(total > 0, total, 1), 1 / count))

    def weight_rows(self, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """No rows: the regression mixes classes, so its weights are not comparable."""
        return {}


def fit_learned(tables: Sequence[PredictionTable]) -> Learned:
    """Convex weights of least NLL, see `min_nll_weights`."""
    members, table = fitting_data(tables, "learned weights")
    return Learned(min_nll_weights(members, table.labels))


def fit_greedy(tables: Sequence[PredictionTable], rounds: int = 40) -> Greedy:
    """Adds the member that lowers the NLL most, with replacement; ties go to the first member."""
    members, table = fitting_data(tables, "greedy selection")
    patients = np.unique(table.patients.astype(str), return_inverse=True)[1]
    half = np.random.default_rng(0).permutation(patients.max() + 1)[patients] % 2 == 0
    gaps = []
    for inside in (half, ~half):
        if inside.any() and (~inside).any():
            selection = MemberPool(members[:, inside], table.labels[inside])
            holdout = MemberPool(members[:, ~inside], table.labels[~inside])
            weights, b = _select_members(selection, rounds)
            gaps.append(holdout.loss(weights, b)[0] - selection.loss(weights, b)[0])
    optimism = float(np.mean(gaps)) if gaps else 0.0
    return Greedy(_select_members(MemberPool(members, table.labels), rounds)[0], optimism)


def fit_per_class(
    tables: Sequence[PredictionTable],
    shrinkage: float = SHRINKAGE_ROWS,
    min_positives: int = MIN_POSITIVES,
) -> PerClass:
    """Weights of least one-versus-rest log loss for each class, shrunk towards common weights."""
    members, table = fitting_data(tables, "per-class weights")
    common, rows = min_nll_weights(members, table.labels), []
    for c in range(len(table.class_names)):
        positive = table.labels == c
        n = int(positive.sum())
        ratio = n / (n + shrinkage) if n >= min_positives else 0.0
        one_vs_rest = np.stack([1 - members[:, :, c], members[:, :, c]], axis=2)
        own = min_nll_weights(one_vs_rest, positive.astype(int)) if ratio else common
        rows.append(ratio * own + (1 - ratio) * common)
    return PerClass(np.stack(rows))


def fit_stacked(tables: Sequence[PredictionTable], weight_decay: float = WEIGHT_DECAY) -> Stacked:
    """Weights of least penalized NLL; the penalty pulls towards the members' geometric mean."""
    members, table = fitting_data(tables, "stacking")
    k, count = len(table.class_names), len(members)
    if len(table) < ROWS_PER_WEIGHT * count * k:
        required = (
            f"{ROWS_PER_WEIGHT} x {count} members x {k} classes = {ROWS_PER_WEIGHT * count * k}"
        )
        raise ValueError(f"stacking needs {required} labeled rows, the tables have {len(table)}")
    inputs = np.vstack([_side_by_side(members).T, np.ones(len(table))])
    start = np.hstack([np.tile(np.eye(k), count) / count, np.zeros((k, 1))])

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w = flat.reshape(start.shape)
        scores = w @ inputs
        tempered = tempered_nll_gradients(scores - scores.max(axis=0), table.labels, 1.0)
        penalty = weight_decay / 2 * float(((w - start) ** 2).sum())
        gradient = tempered.by_log @ inputs.T + weight_decay * (w - start)
        return tempered.nll + penalty / len(table), gradient.ravel() / len(table)

    solution = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    w = solution.x.reshape(start.shape)
    return Stacked(w[:, :-1], w[:, -1])


def _side_by_side(members: np.ndarray) -> np.ndarray:
    """Log-probabilities (n, members x K), member by member."""
    return np.hstack(list(safe_log(members)))


def fitting_data(
    tables: Sequence[PredictionTable], purpose: str
) -> tuple[np.ndarray, PredictionTable]:
    """Probabilities (members, n, K) of the labeled rows and the first table; refuses test rows."""
    for table in tables:
        refuse_test(table, purpose)
    labeled = align([table.labeled for table in tables])
    return np.stack([table.probabilities for table in labeled]), labeled[0]


def min_nll_weights(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Convex weights (members,) whose pool has the least NLL after temperature scaling.

    A pool is calibrated after pooling, so weights are optimized together with the temperature:
    weights that suit the uncalibrated pool favor single confident members over a good mixture.
    The search starts at equal weights and near the best single member.
    """
    pool, count = MemberPool(members, labels), len(members)
    equal = np.full(count, 1 / count)
    single = [pool.loss(corner, 1.0)[0] for corner in np.eye(count)]
    starts = [equal, 0.8 * np.eye(count)[int(np.argmin(single))] + 0.2 * equal]
    solutions = [_minimize_from(pool, start) for start in starts]
    best = min(solutions, key=lambda solution: float(solution.fun)).x[:-1]
    return normalized_weights(np.where(best > 1e-9, best, 0.0))


def _minimize_from(pool: "MemberPool", start: np.ndarray) -> OptimizeResult:
    b = refine_inverse_temperature(pool.log_probabilities(start), pool.labels, 1.0, steps=6)
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


def _select_members(pool: "MemberPool", rounds: int, patience: int = 5) -> tuple[np.ndarray, float]:
    """Weights of the best prefix of a greedy selection, and their inverse temperature."""
    counts, best, least = np.zeros(len(pool)), (np.zeros(len(pool)), 1.0), np.inf
    b, best_size = 1.0, 0
    for size in range(1, rounds + 1):
        candidates = [(counts + one_hot) / size for one_hot in np.eye(len(pool))]
        losses = [tempered_nll(pool.log_probabilities(w), pool.labels, b) for w in candidates]
        weights = candidates[int(np.argmin(losses))]
        counts, logs = weights * size, pool.log_probabilities(weights)
        b = refine_inverse_temperature(logs, pool.labels, b)
        loss = tempered_nll(logs, pool.labels, b)
        if loss < least - 1e-9:
            best, least, best_size = (weights, b), loss, size
        if size - best_size >= patience:
            break
    return normalized_weights(best[0]), best[1]


class MemberPool:
    """Members' probabilities (members, n, K) and labels (n,), for the loss of many weights.

    Arrays are classes first, (K, n): sums over few classes are then many times faster.
    """

    def __init__(self, members: np.ndarray, labels: np.ndarray) -> None:
        self.members = np.ascontiguousarray(members.transpose(0, 2, 1))
        self.labels = labels

    def __len__(self) -> int:
        return len(self.members)

    def log_probabilities(self, weights: np.ndarray) -> np.ndarray:
        """Log of the weighted mean, (K, n)."""
        pooled = np.tensordot(weights, self.members, 1)
        return np.asarray(np.log(np.maximum(pooled, MIN_PROBABILITY)))

    def loss(self, weights: np.ndarray, b: float) -> tuple[float, np.ndarray]:
        """Mean NLL at inverse temperature b, and its gradient by the weights and, last, by b."""
        logs = self.log_probabilities(weights)
        tempered = tempered_nll_gradients(logs, self.labels, b)
        by_pool = tempered.by_log / np.exp(logs)
        by_weight = self.members.reshape(len(self), -1) @ by_pool.ravel() / len(self.labels)
        return tempered.nll, np.append(by_weight, tempered.by_b)


@dataclass(frozen=True)
class TemperedNll:
    """Mean NLL at inverse temperature b and its derivatives.

    `by_log` (K, n) is the gradient of the sum over images; `by_b` and `curvature` are the first
    and second derivative of the mean.
    """

    nll: float
    by_log: np.ndarray
    by_b: float
    curvature: float


def tempered_nll_gradients(logs: np.ndarray, labels: np.ndarray, b: float) -> TemperedNll:
    """NLL of log-probabilities (K, n) at inverse temperature b; each column must be <= 0."""
    rows = np.arange(len(labels))
    powers = np.exp(b * logs)
    total = powers.sum(axis=0)
    tempered, own = powers / total, logs[labels, rows]
    mean = (tempered * logs).sum(axis=0)
    variance = (tempered * logs**2).sum(axis=0) - mean**2
    nll = float((np.log(total) - b * own).mean())
    tempered[labels, rows] -= 1
    return TemperedNll(nll, b * tempered, float((mean - own).mean()), float(variance.mean()))


def tempered_nll(logs: np.ndarray, labels: np.ndarray, b: float) -> float:
    """NLL of log-probabilities (K, n) at inverse temperature b."""
    own = logs[labels, np.arange(len(labels))]
    return float((np.log(np.exp(b * logs).sum(axis=0)) - b * own).mean())


def refine_inverse_temperature(
    logs: np.ndarray, labels: np.ndarray, b: float, steps: int = 2
) -> float:
    """Newton steps from inverse temperature b to that of least NLL, each at most a factor of 2."""
    for _ in range(steps):
        tempered = tempered_nll_gradients(logs, labels, b)
        step = tempered.by_b / max(tempered.curvature, 1e-12)
        b = float(np.clip(b - step, max(b / 2, 0.05), min(2 * b, 20.0)))
    return b
