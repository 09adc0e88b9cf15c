"""Scoring rules, calibration errors, temperature and vector scaling, selective prediction."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.fft import dct, idct
from scipy.optimize import minimize
from scipy.special import softmax

from evaluation.predictions import PredictionTable, refuse_test, safe_log

NUM_BINS = 15  # of the calibration error
NUM_CELLS = 200  # of the smooth calibration error
COVERAGES = (0.8, 0.9, 0.95)
TEMPERATURE_RANGE = (0.05, 20.0)
CalibrationMethod = Literal["temperature", "auto"]  # auto: also vector scaling
NUM_FOLDS = 5  # of the patients of val, to choose between temperature and vector scaling


def nll(table: PredictionTable) -> np.ndarray:
    """Negative log-likelihood of each row's label, in nats, (n,)."""
    return np.asarray(-table.log_probabilities[np.arange(len(table)), table.labels])


def brier(table: PredictionTable) -> np.ndarray:
    """Squared distance of the probabilities from the one-hot label, (n,), between 0 and 2."""
    return np.asarray(((table.probabilities - table.one_hot_labels) ** 2).sum(axis=1))


def ece_of_gaps(gaps: np.ndarray) -> np.ndarray:
    """ECE (r,), mean over classes, of gaps (r, K, bins): sums of p - outcome over all images."""
    return np.asarray(np.abs(gaps).sum(axis=-1).mean(axis=-1))


def classwise_ece_of_gaps(gaps: np.ndarray) -> np.ndarray:
    """Mean calibration error over classes, then that of each class, (r, 1 + K), of `gaps`."""
    return np.column_stack([ece_of_gaps(gaps), np.abs(gaps).sum(axis=-1)])


def smooth_ece_of_gaps(gaps: np.ndarray) -> np.ndarray:
    """Smooth calibration error (r,) of gaps in equally wide cells, (r, cells): Blasiok & Nakkiran.

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
    """Mean confidence, accuracy and number of images of each non-empty bin, (bins,) each."""

    confidence: np.ndarray
    accuracy: np.ndarray
    count: np.ndarray

    @property
    def ece(self) -> float:
        """Expected calibration error: gaps of the bins weighted by their number of images."""
        gaps = np.abs(self.confidence - self.accuracy)
        return float((gaps * self.count).sum() / self.count.sum())


def equal_mass_bins(values: np.ndarray, num_bins: int = NUM_BINS) -> np.ndarray:
    """Index of each value's bin, (n,); bins have equally many values, equal values share one."""
    edges = np.quantile(values, np.linspace(0, 1, num_bins + 1)[1:-1])
    return np.searchsorted(np.unique(edges), values, side="right")


def num_plotted_bins(n: int) -> int:
    """Number of bins of a reliability plot of n images: n // 10, within 5 and `NUM_BINS`."""
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
class Calibration:
    """Divides log-probabilities by a temperature; vector scaling then applies scales and biases.

    Both are (K,). `gain` is the NLL of held-out patients of val at a temperature minus that of
    vector scaling, `gain_error` its standard error; None if unknown.
    """

    temperature: float = 1.0
    at_bound: bool = False  # whether the best temperature is outside the range of the search
    scales: list[float] = field(default_factory=list)  # empty without vector scaling
    biases: list[float] = field(default_factory=list)
    gain: float | None = None
    gain_error: float | None = None

    @property
    def is_neutral(self) -> bool:
        """Whether it changes no probability."""
        return self.temperature == 1.0 and not self.scales

    def __call__(self, probabilities: np.ndarray) -> np.ndarray:
        """The calibrated probabilities (..., K)."""
        if self.is_neutral:
            return probabilities
        logits = safe_log(probabilities) / self.temperature
        if self.scales:
            logits = logits * self.scales + self.biases
        return np.asarray(softmax(logits, axis=-1))

    def describe(self) -> str:
        """A sentence for reports: what was fitted, and how much vector scaling gains."""
        fitted = f"Temperature {self.temperature:.3f}"
        if self.scales:
            fitted = "A scale and a bias of each class (vector scaling)"
        if self.gain is None or self.gain_error is None:
            return f"{fitted}, fitted on validation"
        lower = "lower" if self.gain >= 0 else "higher"
        text = (
            f"{fitted}, fitted on validation; on held-out patients, the NLL of vector scaling is "
            f"{abs(self.gain):.4f} {lower} than that of a temperature "
            f"(standard error {self.gain_error:.4f})"
        )
        if self.gain > self.gain_error and not self.scales:
            text += "; it can change predicted classes and is fitted with calibration: auto only"
        return text


def fit_calibration(
    table: PredictionTable, method: CalibrationMethod = "temperature"
) -> Calibration:
    """A temperature; with `auto` vector scaling if it is better in cross-validation by patients.

    Its NLL on held-out patients must then be lower by more than the standard error. ValueError for
    test tables.
    """
    calibration, labeled = fit_temperature(table), table.labeled
    if len(np.unique(labeled.patients.astype(str))) < NUM_FOLDS:
        return calibration

    def gains_of_fold(fold: np.ndarray) -> np.ndarray:
        """NLL at a temperature minus that of vector scaling, for the rows in the mask `fold`."""
        rest, holdout = (labeled.take(np.flatnonzero(mask)) for mask in (~fold, fold))
        simple = _temperature(rest)
        fits = (simple, _vector_scaling(rest, simple))
        nlls = [nll(holdout.with_probabilities(fit(holdout.probabilities))) for fit in fits]
        return np.asarray(nlls[0] - nlls[1])

    gain, error = cross_validated_gain(labeled, gains_of_fold)
    if method == "auto" and gain > error:
        calibration = _vector_scaling(labeled, calibration)
    return replace(calibration, gain=gain, gain_error=error)


def cross_validated_gain(
    table: PredictionTable, gains_of_fold: Callable[[np.ndarray], np.ndarray]
) -> tuple[float, float]:
    """Mean gain and its standard error over patients, by cross-validation in folds of patients.

    `gains_of_fold` fits on the rows outside of a mask (n,), and returns the gain of each row in it.
    """
    fold, gains = table.patient_folds(NUM_FOLDS), np.empty(len(table))
    for k in range(NUM_FOLDS):
        gains[fold == k] = gains_of_fold(fold == k)
    names, patient = np.unique(table.patients.astype(str), return_inverse=True)
    squares = float((np.bincount(patient, gains - gains.mean()) ** 2).sum())
    error = np.sqrt(squares * len(names) / (len(names) - 1)) / len(table)
    return float(gains.mean()), float(error)


def fit_temperature(table: PredictionTable) -> Calibration:
    """The temperature with the smallest NLL, see `_temperature`; ValueError for test rows.

    If it is outside `TEMPERATURE_RANGE`, the bound is returned with a warning.
    """
    refuse_test(table, "a temperature")
    calibration = _temperature(table.labeled)
    if calibration.at_bound:
        reason = f"it is at its bound {calibration.temperature:g}"
        warnings.warn(f"temperature is not determined by the val split: {reason}", stacklevel=2)
    return calibration


def _temperature(labeled: PredictionTable) -> Calibration:
    """The temperature in `TEMPERATURE_RANGE` with the smallest NLL; `at_bound` if it is an end.

    Bisects the slope in 1 / T, which increases. Each one-hot label gives 1 / (n + 1) to the other
    classes: without any error, the best temperature would otherwise be 0.
    """
    logs, targets = _logs_and_targets(labeled)
    of_label = (targets * logs).sum(axis=0)
    low, high = 1 / TEMPERATURE_RANGE[1], 1 / TEMPERATURE_RANGE[0]
    for bound, sign in ((low, 1), (high, -1)):
        if sign * _nll_slope(logs, of_label, bound) >= 0:
            return Calibration(1 / bound, at_bound=True)
    for _ in range(45):
        middle = (low + high) / 2
        is_below = _nll_slope(logs, of_label, middle) < 0
        low, high = (middle, high) if is_below else (low, middle)
    return Calibration(2 / (low + high))


def _logs_and_targets(labeled: PredictionTable) -> tuple[np.ndarray, np.ndarray]:
    """Log-probabilities and one-hot labels smoothed by 1 / (n + 1), (K, n) each."""
    is_label = labeled.one_hot_labels.T
    num_classes, n = is_label.shape
    error = 1 / (n + 1)
    targets = np.where(is_label, 1 - error, error / (num_classes - 1))
    return np.ascontiguousarray(labeled.log_probabilities.T), targets


def _vector_scaling(labeled: PredictionTable, temperature: Calibration) -> Calibration:
    """The temperature, followed by scales >= 0 and biases of least penalized NLL.

    `minimize_penalized_nll` pulls scales to 1 and biases to 0; labels are smoothed too.
    """
    logs, targets = _logs_and_targets(labeled)
    logs /= temperature.temperature

    def loss(fit: np.ndarray) -> tuple[float, np.ndarray]:
        """Mean NLL of scales and biases (2, K), and the gradient of the sum."""
        scores = fit[0, :, None] * logs + fit[1, :, None]
        scores -= scores.max(axis=0)
        powers = np.exp(scores)
        total = powers.sum(axis=0)
        mean = float((np.log(total) - (targets * scores).sum(axis=0)).mean())
        by_score = powers / total - targets
        return mean, np.stack([(by_score * logs).sum(axis=1), by_score.sum(axis=1)])

    start = np.repeat([[1.0], [0.0]], len(logs), axis=1)
    bounds = [(0, None)] * len(logs) + [(None, None)] * len(logs)
    scales, biases = minimize_penalized_nll(start, loss, len(labeled), bounds)
    return replace(temperature, scales=scales.tolist(), biases=biases.tolist())


def minimize_penalized_nll(
    start: np.ndarray, nll: Callable[[np.ndarray], tuple[float, np.ndarray]], n: int,
    bounds: Sequence[tuple[float | None, float | None]] | None = None,
) -> np.ndarray:  # fmt: skip
    """Minimizes n * mean NLL + 0.5 * ||x - start||^2 by L-BFGS-B; returns x in the shape of start.

    `nll` returns the mean NLL of n rows, but the gradient of their sum (n times that of the mean).
    """

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective divided by n, and its gradient."""
        change = flat.reshape(start.shape) - start
        mean, gradient = nll(flat.reshape(start.shape))
        return mean + float((change**2).sum()) / 2 / n, (gradient + change).ravel() / n

    options = {"maxiter": 300}
    solution = minimize(loss, start.ravel(), jac=True, method="L-BFGS-B", bounds=bounds,
                        options=options)  # fmt: skip
    return np.asarray(solution.x.reshape(start.shape))


def _nll_slope(logs: np.ndarray, of_label: np.ndarray, inverse_temperature: float) -> float:
    """Derivative by 1 / T of the mean NLL; `logs` are (K, n), `of_label` (n,) those of labels."""
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
    """Risk and coverage of probabilities (n, K); images with equal confidence enter together."""
    confidence, is_wrong = probabilities.max(axis=1), probabilities.argmax(axis=1) != labels
    order = np.argsort(-confidence, kind="stable")
    last_of_ties = np.append(np.diff(confidence[order]) != 0, True)
    included = np.arange(1, len(order) + 1)[last_of_ties]
    errors = is_wrong[order].cumsum()[last_of_ties]
    return RiskCoverage(included / len(order), errors / included)


def fit_referral(table: PredictionTable, risk: float) -> float:
    """Lowest confidence with error rate <= `risk` on val, above 1 if none; ValueError for test."""
    refuse_test(table, "a referral threshold")
    labeled = table.labeled
    curve = risk_coverage(labeled.probabilities, labeled.labels)
    allowed = np.flatnonzero(curve.risk <= risk)
    if len(allowed) == 0:
        return float(np.nextafter(1.0, 2.0))
    return float(np.unique(labeled.probabilities.max(axis=1))[::-1][allowed[-1]])
