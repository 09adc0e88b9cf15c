"""Voters whose convex weights minimize the NLL on validation tables, and that objective."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import softmax

from evaluation.metrics.calibration import minimize_penalized_nll
from evaluation.predictions import MIN_PROBABILITY, PredictionTable, align, refuse_test, safe_log
from evaluation.voters.simple import Voter, Weighted, check_member_count, normalized_weights

SHRINKAGE_ROWS = 100.0  # rows at which own weights count as much as the common ones
MIN_POSITIVES = 50  # a class with fewer positives takes the common weights
ROWS_PER_WEIGHT = 50  # labeled rows that stacking needs for each member and class
GREEDY_ROUNDS, GREEDY_PATIENCE = 40, 5  # most members added; rounds without a lower NLL


class Learned(Weighted):
    """Convex weights whose weighted mean has the least validation NLL, see `min_nll_weights`."""

    name = "learned"


@dataclass(frozen=True)
class Greedy(Weighted):
    """Weights by Caruana's ensemble selection with replacement, scored by NLL."""

    optimism: float = 0.0  # NLL on half of the patients minus that on the half of the selection
    name = "greedy"


class PerClass(Weighted):
    """Weights (K, members) for each class, shrunk towards common weights."""

    name = "per_class"

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Weighted sum per class, normalized over classes."""
        check_member_count(members, self.weights.shape[1])
        pooled = np.maximum(np.einsum("km,mnk->nk", self.weights, members), MIN_PROBABILITY)
        return np.asarray(pooled / pooled.sum(axis=1, keepdims=True))

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """The weights (n, members) of the given class of each image."""
        return np.asarray(self.weights[classes])

    def weight_rows(self, class_names: Sequence[str]) -> dict[str, np.ndarray]:
        """One row per class."""
        return dict(zip(class_names, self.weights, strict=True))


@dataclass(frozen=True)
class Stacked(Voter):
    """Multinomial logistic regression on all members' log-probabilities; it mixes classes."""

    weights: np.ndarray  # (K, members x K)
    bias: np.ndarray  # (K,)
    name = "stacked"

    def __call__(self, members: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Softmax of the regression."""
        check_member_count(members, self.weights.shape[1] // len(self.bias))
        return np.asarray(softmax(_side_by_side(members) @ self.weights.T + self.bias, axis=1))

    def member_weights(
        self, members: np.ndarray, classes: np.ndarray, groups: np.ndarray | None = None
    ) -> np.ndarray:
        """Each member's positive weight on its log-probability of the class; equal if none."""
        k, count = len(self.bias), len(members)
        own = self.weights.reshape(k, count, k)[classes, :, classes].clip(0)
        total = own.sum(axis=1, keepdims=True)
        return np.asarray(np.where(total > 0, own / np.where(total > 0, total, 1), 1 / count))


def fit_learned(tables: Sequence[PredictionTable]) -> Learned:
    """Convex weights of least NLL, see `min_nll_weights`."""
    members, table = fitting_data(tables, "learned weights")
    return Learned(min_nll_weights(members, table.labels))


def fit_greedy(tables: Sequence[PredictionTable]) -> Greedy:
    """Weights by greedy selection: adds the member that lowers the NLL most, with replacement."""
    members, table = fitting_data(tables, "greedy selection")
    half = table.patient_folds(2) == 0
    gaps = []
    for inside in (half, ~half):
        if inside.any() and (~inside).any():
            selection = MemberPool(members[:, inside], table.labels[inside])
            holdout = MemberPool(members[:, ~inside], table.labels[~inside])
            weights, b = _select_members(selection)
            gaps.append(holdout.loss(weights, b)[0] - selection.loss(weights, b)[0])
    weights, _ = _select_members(MemberPool(members, table.labels))
    return Greedy(weights, float(np.mean(gaps)) if gaps else 0.0)


def fit_per_class(tables: Sequence[PredictionTable]) -> PerClass:
    """Weights of least one-versus-rest NLL for each class, shrunk towards those of all classes."""
    members, table = fitting_data(tables, "per-class weights")
    common, rows = min_nll_weights(members, table.labels), []
    for c in range(len(table.class_names)):
        positive = table.labels == c
        if positive.sum() < MIN_POSITIVES:
            rows.append(common)
            continue
        one_vs_rest = np.stack([1 - members[:, :, c], members[:, :, c]], axis=2)
        own = min_nll_weights(one_vs_rest, positive.astype(int))
        rows.append(shrink(own, common, int(positive.sum())))
    return PerClass(np.stack(rows))


def shrink(own: np.ndarray, common: np.ndarray, n: int) -> np.ndarray:
    """(n * own + s * common) / (n + s), s = `SHRINKAGE_ROWS`; `own` was fitted on n rows."""
    ratio = n / (n + SHRINKAGE_ROWS)
    return np.asarray(ratio * own + (1 - ratio) * common)


def fit_stacked(tables: Sequence[PredictionTable]) -> Stacked:
    """Multinomial logistic regression on all members' log-probabilities, of least penalized NLL.

    `minimize_penalized_nll` pulls it to the geometric mean of the members.
    """
    members, table = fitting_data(tables, "stacking")
    k, count = len(table.class_names), len(members)
    if len(table) < (required := ROWS_PER_WEIGHT * count * k):
        product = f"{ROWS_PER_WEIGHT} x {count} members x {k} classes = {required}"
        raise ValueError(f"stacking needs {product} labeled rows, the tables have {len(table)}")
    inputs = np.vstack([_side_by_side(members).T, np.ones(len(table))])

    def nll(w: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean NLL of weights and bias (K, members x K + 1), and the gradient of the sum."""
        scores = w @ inputs
        loss, by_log, _, _ = tempered_nll_gradients(scores - scores.max(axis=0), table.labels, 1.0)
        return loss, by_log @ inputs.T

    start = np.hstack([np.tile(np.eye(k), count) / count, np.zeros((k, 1))])
    w = minimize_penalized_nll(start, nll, len(table))
    return Stacked(w[:, :-1], w[:, -1])


def _side_by_side(members: np.ndarray) -> np.ndarray:
    """Log-probabilities (n, members x K), member by member."""
    return np.hstack(list(safe_log(members)))


def fitting_data(
    tables: Sequence[PredictionTable], purpose: str
) -> tuple[np.ndarray, PredictionTable]:
    """Probabilities (members, n, K) and first table, of labeled rows; ValueError for test rows."""
    for table in tables:
        refuse_test(table, purpose)
    labeled = align([table.labeled for table in tables])
    return np.stack([table.probabilities for table in labeled]), labeled[0]


def min_nll_weights(members: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Convex weights (members,) whose weighted mean has the least NLL after temperature scaling.

    Without the scaling, weights would favor single confident members over a good mixture. The
    search starts at equal weights and near the best single member.
    """
    pool, count = MemberPool(members, labels), len(members)
    equal = np.full(count, 1 / count)
    single = [pool.loss(corner, 1.0)[0] for corner in np.eye(count)]
    sum_gradient, solutions = np.append(np.ones(count), 0.0), []
    for start in (equal, 0.8 * np.eye(count)[int(np.argmin(single))] + 0.2 * equal):
        b = refine_inverse_temperature(pool.log_probabilities(start), labels, 1.0, steps=6)
        solutions.append(minimize(
            lambda x: pool.loss(x[:-1], x[-1]), np.append(start, b), jac=True, method="SLSQP",
            bounds=[(0, 1)] * count + [(0.05, 20)], options={"ftol": 1e-10, "maxiter": 200},
            constraints={"type": "eq", "fun": lambda x: x[:-1].sum() - 1,
                         "jac": lambda x: sum_gradient},
        ))  # fmt: skip
    best = min(solutions, key=lambda solution: float(solution.fun)).x[:-1]
    return normalized_weights(np.where(best > 1e-9, best, 0.0))


def _select_members(pool: "MemberPool") -> tuple[np.ndarray, float]:
    """Weights (members,) after the best round of a greedy selection, and inverse temperature."""
    counts, best, least = np.zeros(len(pool)), (np.zeros(len(pool)), 1.0), np.inf
    b, best_size = 1.0, 0
    for size in range(1, GREEDY_ROUNDS + 1):
        candidates = [(counts + one_hot) / size for one_hot in np.eye(len(pool))]
        losses = [tempered_nll(pool.log_probabilities(w), pool.labels, b) for w in candidates]
        weights = candidates[int(np.argmin(losses))]
        counts, logs = weights * size, pool.log_probabilities(weights)
        b = refine_inverse_temperature(logs, pool.labels, b)
        loss = tempered_nll(logs, pool.labels, b)
        if loss < least - 1e-9:
            best, least, best_size = (weights, b), loss, size
        if size - best_size >= GREEDY_PATIENCE:
            break
    return normalized_weights(best[0]), best[1]


class MemberPool:
    """Members' probabilities (members, n, K) and labels (n,), for the loss of many weights."""

    def __init__(self, members: np.ndarray, labels: np.ndarray) -> None:
        # classes first, (K, n): sums over few classes are then many times faster
        self.members = np.ascontiguousarray(members.transpose(0, 2, 1))
        self.labels = labels

    def __len__(self) -> int:
        return len(self.members)

    def log_probabilities(self, weights: np.ndarray) -> np.ndarray:
        """Log of the weighted mean, (K, n)."""
        return safe_log(np.tensordot(weights, self.members, 1))

    def loss(self, weights: np.ndarray, b: float) -> tuple[float, np.ndarray]:
        """Mean NLL at inverse temperature b, and its gradient by the weights and, last, by b."""
        logs = self.log_probabilities(weights)
        nll, by_log, by_b, _ = tempered_nll_gradients(logs, self.labels, b)
        by_pool = by_log / np.exp(logs)
        by_weight = self.members.reshape(len(self), -1) @ by_pool.ravel() / len(self.labels)
        return nll, np.append(by_weight, by_b)


def tempered_nll_gradients(
    logs: np.ndarray, labels: np.ndarray, b: float
) -> tuple[float, np.ndarray, float, float]:
    """Mean NLL of log-probabilities (K, n) <= 0 at inverse temperature b, and its derivatives.

    Gradient (K, n) of the sum over images by `logs`, first and second derivative of the mean by b.
    """
    rows, powers = np.arange(len(labels)), np.exp(b * logs)
    total = powers.sum(axis=0)
    tempered, own = powers / total, logs[labels, rows]
    mean = (tempered * logs).sum(axis=0)
    variance = (tempered * logs**2).sum(axis=0) - mean**2
    nll = float((np.log(total) - b * own).mean())
    tempered[labels, rows] -= 1
    return nll, b * tempered, float((mean - own).mean()), float(variance.mean())


def tempered_nll(logs: np.ndarray, labels: np.ndarray, b: float) -> float:
    """Mean NLL of log-probabilities (K, n) at inverse temperature b."""
    own = logs[labels, np.arange(len(labels))]
    return float((np.log(np.exp(b * logs).sum(axis=0)) - b * own).mean())


def refine_inverse_temperature(
    logs: np.ndarray, labels: np.ndarray, b: float, steps: int = 2
) -> float:
    """Newton steps from inverse temperature b to that of least NLL, each at most a factor of 2."""
    for _ in range(steps):
        _, _, by_b, curvature = tempered_nll_gradients(logs, labels, b)
        step = by_b / max(curvature, 1e-12)
        b = float(np.clip(b - step, max(b / 2, 0.05), min(2 * b, 20.0)))
    return b
