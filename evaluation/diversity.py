"""Diversity of members: pairwise disagreement, agreement of all, and its effect on the NLL."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from scipy.sparse import csr_matrix, hstack
from scipy.special import log_softmax

from evaluation.metrics import confusion
from evaluation.predictions import Tables, align, safe_log
from evaluation.stats.bootstrap import DRAWS, Clusters, bootstrap, one_hot
from evaluation.stats.estimate import Estimate, mean_estimate, replicate_estimate

NO_ERRORS = "a member is right on all images, or on none"
ONE_CLASS = "both members predict one class only"


@dataclass(frozen=True)
class PairDiversity:
    """Diversity of the predictions and errors of two members."""

    disagreement: Estimate  # fraction of the images on which their predictions differ
    double_fault: Estimate  # fraction of the images on which both are wrong
    q: Estimate  # Yule's Q of their errors
    kappa: Estimate  # Cohen's kappa of their predictions
    error_correlation: Estimate  # correlation of their errors


def pair_diversity(
    first: np.ndarray, second: np.ndarray, labels: np.ndarray, patients: np.ndarray,
    draws: int = DRAWS, seed: int = 0,
) -> PairDiversity:  # fmt: skip
    """Diversity of two members' predicted classes (n,), with intervals over patients."""
    n, k = len(first), int(max(first.max(), second.max())) + 1
    a, b = first == labels, second == labels
    cells = csr_matrix(np.column_stack([a & b, ~a & ~b, a & ~b, b & ~a]).astype(float))
    joint = one_hot(first * k + second, k * k)
    clusters = Clusters.from_patients(patients, np.zeros(n, dtype=np.int64))
    sums = clusters.sum_by_patient(hstack([cells, joint]).tocsr())
    replicates = bootstrap(sums, lambda s: _coefficients(s, k), clusters, draws, seed)
    size = (n, clusters.num_patients)
    return PairDiversity(
        *(mean_estimate(patients, x, draws=draws, seed=seed) for x in (first != second, ~a & ~b)),
        *(
            replicate_estimate(replicates, column, size, reason, minimum=-1.0)
            for column, reason in enumerate((NO_ERRORS, ONE_CLASS, NO_ERRORS))
        ),
    )


def _coefficients(sums: np.ndarray, k: int) -> np.ndarray:
    """Q, kappa, error correlation (r, 3); `sums` (r, 4 + k * k) count joint errors and classes."""
    both, neither, only_first, only_second = sums[:, :4].T
    determinant = both * neither - only_first * only_second
    variances = (both + only_first) * (only_second + neither)
    variances *= (both + only_second) * (only_first + neither)
    q = confusion.ratio(determinant, both * neither + only_first * only_second)
    kappa = confusion.kappa(sums[:, 4:].reshape(-1, k, k))
    return np.column_stack([q, kappa, confusion.ratio(determinant, np.sqrt(variances))])


def member_diversity(
    tables: Tables, draws: int = DRAWS, seed: int = 0
) -> tuple[dict[str, PairDiversity], Estimate]:
    """PairDiversity by `first & second`, and the fraction of labeled rows on which all agree."""
    labeled = align([table.labeled for table in tables.values()])
    labels, patients = labeled[0].labels, labeled[0].patients
    predictions = [table.predictions for table in labeled]
    pairs = {
        f"{a} & {b}": pair_diversity(first, second, labels, patients, draws, seed)
        for (a, first), (b, second) in combinations(zip(tables, predictions, strict=True), 2)
    }
    is_unanimous = np.ptp(predictions, axis=0) == 0
    return pairs, mean_estimate(patients, is_unanimous, draws=draws, seed=seed)


@dataclass(frozen=True)
class NllDecomposition:
    """NLL of the geometric mean of members: `pool` = `mean_member` - `diversity`, exactly."""

    pool: float
    mean_member: float
    diversity: float


def decompose_nll(members: np.ndarray, labels: np.ndarray) -> NllDecomposition:
    """The decomposition for members (members, n, K); `diversity` is the mean KL(pool || member)."""
    logs, rows = safe_log(members), np.arange(len(labels))
    pooled = log_softmax(logs.mean(axis=0), axis=1)
    divergence = (np.exp(pooled) * (pooled - logs)).sum(axis=2).mean()
    losses = -pooled[rows, labels].mean(), -logs[:, rows, labels].mean()
    return NllDecomposition(*map(float, (*losses, divergence)))


def js_divergence(members: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence (n,) of the members' probabilities (members, n, K), in nats."""
    mean = members.mean(axis=0)
    mean_entropy = -(members * safe_log(members)).sum(axis=2).mean(axis=0)
    return np.asarray(-(mean * safe_log(mean)).sum(axis=1) - mean_entropy)
