"""How far confidence can be taken at its word."""

from dataclasses import dataclass

import numpy as np

BINS = 15


@dataclass(frozen=True)
class Bins:
    """Mean confidence, accuracy and count of each non-empty bin."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: the gap of each bin, weighted by its share."""
        gaps = np.abs(self.confidence - self.accuracy)
        return float((gaps * self.count).sum() / self.count.sum())


def equal_mass(values: np.ndarray, bins: int = BINS) -> np.ndarray:
    """The bin (n,) of each value: bins of equal count, ties kept together, ends closed."""
    edges = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1])
    return np.searchsorted(np.unique(edges), values, side="right")


def binned(predicted: np.ndarray, happened: np.ndarray, bins: int = BINS) -> Bins:
    """Mean prediction against frequency in equal-mass bins of the prediction."""
    at = equal_mass(predicted, bins)
    count = np.bincount(at)
    used = count > 0
    mean = np.bincount(at, predicted)[used] / count[used]
    share = np.bincount(at, happened.astype(float))[used] / count[used]
    return Bins(mean, share, count[used])


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> Bins:
    """The bins of the top class: its probability against whether it was right."""
    right = probabilities.argmax(axis=1) == labels
    return binned(probabilities.max(axis=1), right, bins)


def ece(probabilities: np.ndarray, labels: np.ndarray, bins: int = BINS) -> float:
    """Expected calibration error of the top class."""
    return reliability_bins(probabilities, labels, bins).ece
