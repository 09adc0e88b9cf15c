"""How differently members err, pair by pair, and what that is worth to a geometric pool."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import csr_matrix, hstack
from scipy.special import log_softmax

from evaluation.metrics import confusion
from evaluation.stats.clusters import Clusters
from evaluation.stats.estimate import DRAWS, Estimate, bootstrap, make_estimate
from evaluation.stats.means import mean
from evaluation.stats.small_samples import ALIKE, with_room

UNERRING = "a member is right on all images, or on none"


@dataclass(frozen=True)
class Pair:
    """What two members share; a quantity that has no value says why."""

    disagreement: Estimate
    double_fault: Estimate
    q: Estimate
    kappa: Estimate
    error_correlation: Estimate


def pair(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
) -> Pair:
    """Diversity of two members' predicted classes (n,), with intervals over patients."""
    right = [first == labels, second == labels]
    apart, neither = first != second, ~right[0] & ~right[1]
    cells = [right[0] & right[1], neither, right[0] & ~right[1], right[1] & ~right[0]]
    return Pair(
        mean(patients, apart, draws=draws, seed=seed),
        mean(patients, neither, draws=draws, seed=seed),
        *_coefficients(np.column_stack(cells), first, second, patients, draws, seed),
    )


def _coefficients(
    cells: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    patients: np.ndarray,
    draws: int,
    seed: int,
) -> list[Estimate]:
    """Yule's Q of the errors, kappa of the answers, and the correlation of the errors."""
    n, k = len(first), int(max(first.max(), second.max())) + 1
    clusters = Clusters.make(patients, np.zeros(n, dtype=np.int64))
    said = csr_matrix((np.ones(n), (np.arange(n), first * k + second)), (n, k * k))
    sums = clusters.total(hstack([csr_matrix(cells.astype(float)), said]).tocsr())
    redrawn = bootstrap(sums, lambda s: _of_sums(s, k), clusters, draws, seed)
    size, found = (n, clusters.count), []
    for at, none in enumerate((UNERRING, "both members name one class alone", UNERRING)):
        parts, method = with_room(redrawn, at, 0.0, 0.0, -1.0)
        found.append(make_estimate(parts, method, *size, ALIKE if np.isfinite(parts[0]) else none))
    return found


def _of_sums(sums: np.ndarray, k: int) -> np.ndarray:
    """Summed cells (both right, neither, first alone, second alone) and answers -> (r, 3)."""
    both, neither, one, other = sums[:, :4].T
    across = both * neither - one * other
    spread = np.sqrt((both + one) * (other + neither) * (both + other) * (one + neither))
    q = confusion.ratio(across, both * neither + one * other)
    kappa = confusion.kappa(sums[:, 4:].reshape(-1, k, k))
    return np.column_stack([q, kappa, confusion.ratio(across, spread)])


def pairs(
    members: np.ndarray,
    labels: np.ndarray,
    patients: np.ndarray,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[tuple[int, int], Pair]:
    """Every pair of members (members, n, K), by their positions."""
    said = members.argmax(axis=2)
    return {
        (i, j): pair(said[i], said[j], labels, patients, draws, seed)
        for i, j in combinations(range(len(said)), 2)
    }


def agreement(
    members: np.ndarray, patients: np.ndarray, draws: int = DRAWS, seed: int = 0
) -> Estimate:
    """Share of the images on which all members name the same class."""
    said = members.argmax(axis=2)
    return mean(patients, (said == said[0]).all(axis=0), draws=draws, seed=seed)


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
