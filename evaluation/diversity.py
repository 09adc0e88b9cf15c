"""How differently members err, pair by pair, and what that is worth to a geometric pool."""

from dataclasses import dataclass

import numpy as np
from scipy.special import log_softmax

from evaluation import rates


@dataclass(frozen=True)
class Pair:
    """What two members share; None where the quantity has no value."""

    disagreement: float
    double_fault: float
    q: float | None
    kappa: float | None
    error_correlation: float | None


def pair(first: np.ndarray, second: np.ndarray, labels: np.ndarray) -> Pair:
    """Diversity of two members' predicted classes (n,)."""
    right = [first == labels, second == labels]
    both, neither = np.mean(right[0] & right[1]), np.mean(~right[0] & ~right[1])
    one, other = np.mean(right[0] & ~right[1]), np.mean(right[1] & ~right[0])
    across = float(both * neither - one * other)
    spread = float(np.sqrt((both + one) * (other + neither) * (both + other) * (one + neither)))
    classes = int(max(first.max(), second.max())) + 1
    return Pair(
        disagreement=float(np.mean(first != second)),
        double_fault=float(neither),
        q=_quotient(across, float(both * neither + one * other)),
        kappa=_known(float(rates.kappa(rates.confusion(first, second, classes)))),
        error_correlation=_quotient(across, spread),
    )


def _quotient(top: float, bottom: float) -> float | None:
    return top / bottom if bottom > 0 else None


def _known(value: float) -> float | None:
    return value if np.isfinite(value) else None


def pairs(members: np.ndarray, labels: np.ndarray) -> dict[tuple[int, int], Pair]:
    """Every pair of members (members, n, K), by their positions."""
    said = members.argmax(axis=2)
    count = len(said)
    return {
        (i, j): pair(said[i], said[j], labels) for i in range(count) for j in range(i + 1, count)
    }


def agreement(members: np.ndarray) -> float:
    """Share of the images on which all members name the same class."""
    said = members.argmax(axis=2)
    return float((said == said[0]).all(axis=0).mean())


@dataclass(frozen=True)
class Split:
    """The exact split of a geometric pool's NLL: `pool` = `mean_member` - `diversity`."""

    pool: float
    mean_member: float
    diversity: float


def split(members: np.ndarray, labels: np.ndarray) -> Split:
    """NLL of the geometric pool, of the mean member, and the mean KL from pool to member."""
    logs = np.log(np.maximum(members, 1e-30))
    rows = np.arange(len(labels))
    pooled = log_softmax(logs.mean(axis=0), axis=1)
    apart = (np.exp(pooled) * (pooled - logs)).sum(axis=2)
    mean_member = -logs[:, rows, labels].mean()
    return Split(float(-pooled[rows, labels].mean()), float(mean_member), float(apart.mean()))


def dispute(members: np.ndarray) -> np.ndarray:
    """How much members differ on each image (n,): the Jensen-Shannon divergence, in nats."""
    logs = np.log(np.maximum(members, 1e-30))
    mean = members.mean(axis=0)
    entropy = -(members * logs).sum(axis=2).mean(axis=0)
    return np.asarray(-(mean * np.log(np.maximum(mean, 1e-30))).sum(axis=1) - entropy)
