"""Rates of a confusion matrix, for one matrix or for a stack of thousands at once."""

import numpy as np

Rates = dict[str, np.ndarray]


def confusion(labels: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Counts (K, K): rows are labels, columns are predictions."""
    counts = np.bincount(labels * classes + predicted, minlength=classes * classes)
    return counts.reshape(classes, classes)


def ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Quotient, NaN where bottom is 0."""
    return np.where(bottom != 0, top / np.where(bottom != 0, bottom, 1), np.nan)


def accuracy(m: np.ndarray) -> np.ndarray:
    """Share of the diagonal, for matrices (…, K, K)."""
    return ratio(np.trace(m, axis1=-2, axis2=-1), m.sum(axis=(-2, -1)))


def recall(m: np.ndarray) -> np.ndarray:
    """Recall (sensitivity) of each class (…, K); NaN for a class without images."""
    return ratio(_diagonal(m), m.sum(axis=-1))


def precision(m: np.ndarray) -> np.ndarray:
    """Precision of each class (…, K); NaN for a class never predicted."""
    return ratio(_diagonal(m), m.sum(axis=-2))


def specificity(m: np.ndarray) -> np.ndarray:
    """Share of the other classes' images not predicted as this class, (…, K)."""
    others = m.sum(axis=(-2, -1))[..., None] - m.sum(axis=-1)
    return 1 - ratio(m.sum(axis=-2) - _diagonal(m), others)


def f1(m: np.ndarray) -> np.ndarray:
    """F1 of each class (…, K); NaN for a class without images."""
    score = ratio(2 * _diagonal(m), m.sum(axis=-1) + m.sum(axis=-2))
    return np.where(m.sum(axis=-1) > 0, score, np.nan)


def kappa(m: np.ndarray, quadratic: bool = False) -> np.ndarray:
    """Cohen's kappa of matrices (…, K, K), with quadratic weights for ordered classes."""
    k = m.shape[-1]
    steps = np.subtract.outer(np.arange(k), np.arange(k))
    cost = steps**2.0 if quadratic else (steps != 0).astype(float)
    chance = m.sum(axis=-1)[..., :, None] * m.sum(axis=-2)[..., None, :]
    total = m.sum(axis=(-2, -1))
    return 1 - ratio((m * cost).sum(axis=(-2, -1)) * total, (chance * cost).sum(axis=(-2, -1)))


def mcc(m: np.ndarray) -> np.ndarray:
    """Matthews' correlation for K classes; 0 when all labels or all predictions are one class."""
    total, hits = m.sum(axis=(-2, -1)), np.trace(m, axis1=-2, axis2=-1)
    truth, said = m.sum(axis=-1), m.sum(axis=-2)
    spread = (total**2 - (truth**2).sum(axis=-1)) * (total**2 - (said**2).sum(axis=-1))
    score = ratio(hits * total - (truth * said).sum(axis=-1), np.sqrt(np.maximum(spread, 0.0)))
    return np.where(spread > 0, score, np.where(total > 0, 0.0, np.nan))


def overall(m: np.ndarray) -> Rates:
    """Every rate of whole matrices (…, K, K) -> (…), by name.

    A macro mean is NaN when a class has no image. A class that has images but is never
    predicted counts in the mean precision as 0, as scikit-learn does.
    """
    share = ratio(m.sum(axis=-1), m.sum(axis=(-2, -1))[..., None])
    absent = (m.sum(axis=-1) == 0).any(axis=-1)
    filled = np.nan_to_num(precision(m))
    rates = {"accuracy": accuracy(m), "balanced_accuracy": recall(m).mean(axis=-1)}
    for name, each in (("precision", filled), ("recall", recall(m)), ("f1", f1(m))):
        rates[f"{name}_macro"] = np.where(absent, np.nan, each.mean(axis=-1))
        rates[f"{name}_weighted"] = (np.nan_to_num(each) * share).sum(axis=-1)
    rates["specificity_macro"] = np.where(absent, np.nan, specificity(m).mean(axis=-1))
    rates |= {"kappa": kappa(m), "kappa_quadratic": kappa(m, quadratic=True), "mcc": mcc(m)}
    return rates


def per_class(m: np.ndarray) -> Rates:
    """Every rate of one class, (…, K) each, by name."""
    return {
        "recall": recall(m),
        "precision": precision(m),
        "specificity": specificity(m),
        "f1": f1(m),
    }


def _diagonal(m: np.ndarray) -> np.ndarray:
    return np.diagonal(m, axis1=-2, axis2=-1)
