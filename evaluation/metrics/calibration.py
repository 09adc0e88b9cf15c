"""How far confidence can be taken at its word."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.special import softmax

from evaluation.predictions import PredictionTable, refuse_test
from evaluation.voters.likelihood import slope
from evaluation.voters.simple import logs

BINS = 15
BOUNDS = (0.05, 20.0)  # of the temperature


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


@dataclass(frozen=True)
class Temperature:
    """Divides log-probabilities by `value`; 1 changes nothing.

    `at_bound` says that the best temperature lies outside the range searched.
    """

    value: float = 1.0
    at_bound: bool = False

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The probabilities (…, K) at this temperature."""
        if self.value == 1.0:
            return probabilities
        return np.asarray(softmax(logs(probabilities) / self.value, axis=-1))


def fit_temperature(table: PredictionTable) -> Temperature:
    """The temperature of least NLL, by bisection on the derivative in 1 / T.

    The derivative rises with 1 / T, so one crossing is the minimum. Refused on test. One error
    more than was seen is assumed, spread over all images: n images without an error do not show
    that there is none, and without it their best temperature would be 0. Where the best lies
    outside the bounds, the bound is taken with a warning.
    """
    refuse_test(table, "a temperature")
    known = table.labeled
    classes_first = np.ascontiguousarray(known.log_probabilities.T)
    own = classes_first[known.labels, np.arange(len(known))]
    others = (classes_first.sum(axis=0) - own) / (len(classes_first) - 1)
    own = own + (others - own) / (len(own) + 1)
    low, high = 1 / BOUNDS[1], 1 / BOUNDS[0]
    for end, outside in (
        (low, slope(classes_first, own, low) >= 0),
        (high, slope(classes_first, own, high) <= 0),
    ):
        if outside:
            said = f"validation cannot tell the temperature: it runs to its bound {1 / end:g}"
            warnings.warn(said, stacklevel=2)
            return Temperature(1 / end, at_bound=True)
    for _ in range(45):
        middle = (low + high) / 2
        low, high = (middle, high) if slope(classes_first, own, middle) < 0 else (low, middle)
    return Temperature(2 / (low + high))
