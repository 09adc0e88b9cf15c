"""Columns of a table whose sums over patients are all that most figures need."""

import numpy as np
from scipy.sparse import csr_matrix

from evaluation.metrics import confusion
from evaluation.metrics.calibration import BINS, equal_mass
from evaluation.predictions import PredictionTable
from evaluation.stats.clusters import Sums

CENTRED = ("ece", "ece_classwise")  # figures that redrawing inflates
SHARES = ("accuracy", "recall_weighted")  # shares of the images, the same by two names
BY_IMAGE = (*SHARES, "nll", "brier", *CENTRED)  # in these no class weighs more than its images


def nll(table: PredictionTable) -> np.ndarray:
    """Negative log-likelihood of each row's label, in nats, (n,)."""
    return np.asarray(-table.log_probabilities[np.arange(len(table)), table.labels])


def brier(table: PredictionTable) -> np.ndarray:
    """Squared distance of the probabilities from the label's corner, (n,), between 0 and 2."""
    corner = np.eye(len(table.class_names))[table.labels]
    return np.asarray(((table.probabilities - corner) ** 2).sum(axis=1))


def columns(table: PredictionTable, classwise: bool = True) -> Sums:
    """One row a sample: its confusion cell, NLL, Brier, and its gaps in calibration bins.

    The bins are those of the whole table and stay so when patients are redrawn. Sparse: of
    K x K + 2 + 15 (1 + K) columns a row has 4 + K. Without `classwise` the bins of each class
    are left out, which more than halves the work.
    """
    n, k, p = len(table), len(table.class_names), table.probabilities
    said = table.logits.argmax(axis=1)
    blocks = 1 + k if classwise else 1
    scores = np.column_stack([p.max(axis=1), p])[:, :blocks]
    happened = np.column_stack([said == table.labels, np.eye(k)[table.labels]])[:, :blocks]
    first = k * k + 2 + BINS * np.arange(blocks)
    bins = np.column_stack([equal_mass(score) for score in scores.T]) + first
    where = [table.labels * k + said, np.full(n, k * k), np.full(n, k * k + 1), bins]
    values = [np.ones(n), nll(table), brier(table), scores - happened]
    starts = np.arange(0, n * (3 + blocks) + 1, 3 + blocks)
    flat = (np.column_stack(values).ravel(), np.column_stack(where).ravel(), starts)
    return csr_matrix(flat, (n, k * k + 2 + BINS * blocks))


def matrices(sums: np.ndarray, classes: int) -> np.ndarray:
    """The confusion matrices (r, K, K) in summed columns."""
    return sums[:, : classes**2].reshape(-1, classes, classes)


def overall(sums: np.ndarray, classes: int) -> confusion.Rates:
    """Summed columns (r, d) -> figures of the whole table by name, (r,) each."""
    matrix, rest = matrices(sums, classes), sums[:, classes**2 :]
    n = matrix.sum(axis=(1, 2))
    gaps = confusion.ratio(np.abs(rest[:, 2:].reshape(len(sums), -1, BINS)).sum(axis=2), n[:, None])
    found = confusion.overall(matrix)
    found |= {"nll": confusion.ratio(rest[:, 0], n), "brier": confusion.ratio(rest[:, 1], n)}
    found["ece"] = gaps[:, 0]
    return found | ({"ece_classwise": gaps[:, 1:].mean(axis=1)} if gaps.shape[1] > 1 else {})


def per_class(sums: np.ndarray, class_names: list[str]) -> confusion.Rates:
    """Summed columns (r, d) -> figures of one class, named `recall/<class>`, (r,) each."""
    found = confusion.per_class(matrices(sums, len(class_names)))
    return {
        f"{rate}/{name}": values[:, c]
        for rate, values in found.items()
        for c, name in enumerate(class_names)
    }
