"""Scoring rules, calibration, temperature scaling and selective prediction."""

import warnings
from dataclasses import dataclass

import numpy as np
from scipy.fft import dct, idct
from scipy.special import softmax

from evaluation.predictions import PredictionTable, refuse_test, safe_log

NUM_BINS = 15  # of the calibration error
NUM_CELLS = 200  # of the smooth calibration error
COVERAGES = (0.8, 0.9, 0.95)
TEMPERATURE_RANGE = (0.05, 20.0)


def nll(table: PredictionTable) -> np.ndarray:
    """Negative log-likelihood of each row's label, in nats, (n,)."""
    return np.asarray(-table.log_probabilities[np.arange(len(table)), table.labels])


def brier(table: PredictionTable) -> np.ndarray:
    """Squared distance of the probabilities from the one-hot label, (n,), between 0 and 2."""
    return np.asarray(((table.probabilities - table.one_hot_labels) ** 2).sum(axis=1))


def ece_of_gaps(gaps: np.ndarray) -> np.ndarray:
    """Calibration error (r,), mean over classes, from signed gaps (r, K, bins) of all images."""
    return np.asarray(np.abs(gaps).sum(axis=-1).mean(axis=-1))


def classwise_ece_of_gaps(gaps: np.ndarray) -> np.ndarray:
    """Mean calibration error over classes and that of each class, (r, 1 + K)."""
    return np.column_stack([ece_of_gaps(gaps), np.abs(gaps).sum(axis=-1)])


def smooth_ece_of_gaps(gaps: np.ndarray) -> np.ndarray:
    """Smooth calibration error (r,) from signed gaps (r, cells) of all images (Blasiok & Nakkiran).

    The gaps are smoothed over confidence by a Gaussian kernel that is reflected at 0 and 1; the
    error is the sum of their absolute values, at the bandwidth that equals this error.
    """
    spectrum, frequencies = dct(gaps, axis=1), np.arange(gaps.shape[1])  # it diagonalizes smoothing
    low, high = np.zeros(len(gaps)), np.abs(gaps).sum(axis=1)  # smoothing reduces the error
    for _ in range(20):
        bandwidth = (low + high) / 2
        damping = np.exp(-((np.pi * bandwidth[:, None] * frequencies) ** 2) / 2)
        is_below = np.abs(idct(spectrum * damping, axis=1)).sum(axis=1) > bandwidth
        low, high = np.where(is_below, bandwidth, low), np.where(is_below, high, bandwidth)
    return np.asarray((low + high) / 2)


@dataclass(frozen=True)
class ReliabilityBins:
    """Mean confidence, accuracy and number of images of each non-empty bin."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: gaps of the bins weighted by their number of images."""
        gaps = np.abs(self.confidence - self.accuracy)
        return float((gaps * self.count).sum() / self.count.sum())


def equal_mass_bins(values: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """The bin (n,) of each value: bins of equal count, equal values in one bin."""
    edges = np.quantile(values, np.linspace(0, 1, num_bins + 1)[1:-1])
    return np.searchsorted(np.unique(edges), values, side="right")


def num_plotted_bins(n: int) -> int:
    """Bins of a reliability plot of n images: ten images in each, but from 5 to `NUM_BINS` bins."""
    return min(max(n // 10, 5), NUM_BINS)


def reliability_bins(
    probabilities: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS
) -> ReliabilityBins:
    """Mean confidence and accuracy of probabilities (n, K) in equal-mass bins of confidence."""
    confidence, is_correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of = equal_mass_bins(confidence, num_bins)
    count = np.bincount(bin_of)
    filled = count > 0
    mean = np.bincount(bin_of, confidence)[filled] / count[filled]
    accuracy = np.bincount(bin_of, is_correct.astype(float))[filled] / count[filled]
    return ReliabilityBins(mean, accuracy, count[filled])


@dataclass(frozen=True)
class Temperature:
    """Divides log-probabilities by `value`; 1 changes nothing."""

    value: float = 1.0
    at_bound: bool = False  # whether the best temperature is outside the range of the search

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The probabilities (..., K) at this temperature."""
        if self.value == 1.0:
            return probabilities
        return np.asarray(softmax(safe_log(probabilities) / self.value, axis=-1))


def fit_temperature(table: PredictionTable) -> Temperature:
    """The temperature with the smallest NLL, by bisection on its increasing derivative in 1 / T.

    Test rows are refused. One error more than occurred is assumed, spread over all images: images
    without any error would give a temperature of 0. If the minimum is outside `TEMPERATURE_RANGE`,
    the bound is returned with a warning.
    """
    refuse_test(table, "a temperature")
    labeled = table.labeled
    logs = np.ascontiguousarray(labeled.log_probabilities.T)
    of_label = logs[labeled.labels, np.arange(len(labeled))]
    of_others = (logs.sum(axis=0) - of_label) / (len(logs) - 1)
    of_label = of_label + (of_others - of_label) / (len(of_label) + 1)
    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    for bound, sign in ((low, 1), (high, -1)):
        if sign * _nll_slope(logs, of_label, bound) >= 0:
            reason = f"it is at its bound {1 / bound:g}"
            warnings.warn(f"temperature is not determined by the val split: {reason}", stacklevel=2)
            return Temperature(1 / bound, at_bound=True)
    for _ in range(45):
        middle = (low + high) / 2
        is_below = _nll_slope(logs, of_label, middle) < 0
        low, high = (middle, high) if is_below else (low, middle)
    return Temperature(2 / (low + high))


def _nll_slope(logs: np.ndarray, of_label: np.ndarray, inverse_temperature: float) -> float:
    """Derivative of the mean NLL in 1 / T, from log-probabilities (K, n) and those of labels."""
    powers = np.exp(inverse_temperature * logs)
    expected = (powers * logs).sum(axis=0) / powers.sum(axis=0)
    return float((expected - of_label).mean())


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate of the most confident images (risk), for each fraction of images (coverage)."""

    coverage: np.ndarray
    risk: np.ndarray

    @property
    def aurc(self) -> float:
        """Area under the curve, 0 to 1; lower is better."""
        return float((np.diff(self.coverage, prepend=0.0) * self.risk).sum())


def risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> RiskCoverage:
    """The curve of probabilities (n, K); images of equal largest probability enter together."""
    confidence, is_wrong = probabilities.max(axis=1), probabilities.argmax(axis=1) != labels
    order = np.argsort(-confidence, kind="stable")
    last_of_ties = np.append(np.diff(confidence[order]) != 0, True)
    included = np.arange(1, len(order) + 1)[last_of_ties]
    errors = is_wrong[order].cumsum()[last_of_ties]
    return RiskCoverage(included / len(order), errors / included)


def fit_referral(table: PredictionTable, risk: float) -> float:
    """The lowest confidence with a risk on val of at most `risk`, above 1 if none; refuses test."""
    refuse_test(table, "a referral threshold")
    labeled = table.labeled
    curve = risk_coverage(labeled.probabilities, labeled.labels)
    allowed = np.flatnonzero(curve.risk <= risk)
    if len(allowed) == 0:
        return float(np.nextafter(1.0, 2.0))
    return float(np.unique(labeled.probabilities.max(axis=1))[::-1][allowed[-1]])
