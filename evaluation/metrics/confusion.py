"""Rates of a confusion matrix, for one matrix or for a stack of thousands at once."""

from collections.abc import Callable

import numpy as np

Rate = Callable[[np.ndarray], np.ndarray]  # matrices (..., K, K) -> (...) or (..., K)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, K): rows are labels, columns are predictions."""
    cells = labels * num_classes + predictions
    counts = np.bincount(cells, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    is_zero = denominator == 0
    return np.where(is_zero, np.nan, numerator / np.where(is_zero, 1, denominator))


def accuracy(m: np.ndarray) -> np.ndarray:
    """Fraction of images on the diagonal, for matrices (..., K, K)."""
    return ratio(np.trace(m, axis1=-2, axis2=-1), m.sum(axis=(-2, -1)))


def recall(m: np.ndarray) -> np.ndarray:
    """Recall (sensitivity) of each class (..., K); NaN for a class without images."""
    return ratio(_diagonal(m), m.sum(axis=-1))


def precision(m: np.ndarray) -> np.ndarray:
    """Precision of each class (..., K); NaN for a class never predicted."""
    return ratio(_diagonal(m), m.sum(axis=-2))


def specificity(m: np.ndarray) -> np.ndarray:
    """Fraction of the other classes' images not predicted as this class, (..., K)."""
    others = m.sum(axis=(-2, -1))[..., None] - m.sum(axis=-1)
    return 1 - ratio(m.sum(axis=-2) - _diagonal(m), others)


def f1(m: np.ndarray) -> np.ndarray:
    """F1 of each class (..., K); NaN for a class without images."""
    score = ratio(2 * _diagonal(m), m.sum(axis=-1) + m.sum(axis=-2))
    return np.where(m.sum(axis=-1) > 0, score, np.nan)


def kappa(m: np.ndarray, quadratic: bool = False) -> np.ndarray:
    """Cohen's kappa of matrices (..., K, K), with quadratic weights for ordered classes."""
    k = m.shape[-1]
    distance = np.subtract.outer(np.arange(k), np.arange(k))
    cost = distance**2.0 if quadratic else (distance != 0).astype(float)
    by_chance = m.sum(axis=-1)[..., :, None] * m.sum(axis=-2)[..., None, :]
    total = m.sum(axis=(-2, -1))
    return 1 - ratio((m * cost).sum(axis=(-2, -1)) * total, (by_chance * cost).sum(axis=(-2, -1)))


def mcc(m: np.ndarray) -> np.ndarray:
    """Matthews' correlation for K classes; 0 when all labels or all predictions are one class."""
    total, correct = m.sum(axis=(-2, -1)), np.trace(m, axis1=-2, axis2=-1)
    labeled, predicted = m.sum(axis=-1), m.sum(axis=-2)
    variances = (total**2 - (labeled**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    covariance = correct * total - (labeled * predicted).sum(axis=-1)
    score = ratio(covariance, np.sqrt(np.maximum(variances, 0.0)))
    return np.where(variances > 0, score, np.where(total > 0, 0.0, np.nan))


def macro_average(rate: Rate, m: np.ndarray) -> np.ndarray:
    """Mean of a per-class rate over classes, (...); NaN when a class has no image.

    A class that has images but is never predicted counts in the mean precision as 0, as in
    scikit-learn.
    """
    is_absent = (m.sum(axis=-1) == 0).any(axis=-1)
    return np.where(is_absent, np.nan, np.nan_to_num(rate(m)).mean(axis=-1))


def weighted_average(rate: Rate, m: np.ndarray) -> np.ndarray:
    """Mean of a per-class rate weighted by the number of images of each class, (...)."""
    weights = ratio(m.sum(axis=-1), m.sum(axis=(-2, -1))[..., None])
    return np.asarray((np.nan_to_num(rate(m)) * weights).sum(axis=-1))


def _diagonal(m: np.ndarray) -> np.ndarray:
    return np.diagonal(m, axis1=-2, axis2=-1)
