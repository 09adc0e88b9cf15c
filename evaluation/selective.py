"""Selective prediction: risk-coverage curves, referral thresholds and conformal sets."""

from dataclasses import dataclass

import numpy as np

from evaluation.predictions import PredictionTable, refuse_test

COVERAGES = (0.8, 0.9, 0.95)


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate of the most confident images, for each fraction of images (coverage).

    Images of equal confidence are included together.
    """

    coverage: np.ndarray
    risk: np.ndarray

    @property
    def aurc(self) -> float:
        """Area under the curve, 0 to 1; lower is better."""
        steps = np.diff(self.coverage, prepend=0.0)
        return float((steps * self.risk).sum())

    def risk_at(self, coverage: float) -> float:
        """Risk at the smallest coverage that is at least `coverage`."""
        return float(self.risk[np.searchsorted(self.coverage, coverage - 1e-12)])


def risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> RiskCoverage:
    """The curve of probabilities (n, K), with the largest probability as confidence."""
    confidence = probabilities.max(axis=1)
    is_wrong = probabilities.argmax(axis=1) != labels
    order = np.argsort(-confidence, kind="stable")
    last_of_ties = np.append(np.diff(confidence[order]) != 0, True)
    included = np.arange(1, len(order) + 1)[last_of_ties]
    errors = is_wrong[order].cumsum()[last_of_ties]
    return RiskCoverage(included / len(order), errors / included)


@dataclass(frozen=True)
class Referral:
    """Images whose largest probability is below `threshold` are referred to a person."""

    threshold: float
    target_risk: float
    val_coverage: float

    def is_confident(self, probabilities: np.ndarray) -> np.ndarray:
        """True (n,) for images that are not referred."""
        return np.asarray(probabilities.max(axis=1) >= self.threshold)


def fit_referral(table: PredictionTable, risk: float) -> Referral:
    """The lowest threshold whose risk on the val split is at most `risk`; test is refused.

    If even the most confident images have a higher risk, the threshold is above 1 and refers all.
    """
    refuse_test(table, "a referral threshold")
    labeled = table.labeled
    curve = risk_coverage(labeled.probabilities, labeled.labels)
    allowed = np.flatnonzero(curve.risk <= risk)
    if len(allowed) == 0:
        return Referral(float(np.nextafter(1.0, 2.0)), risk, 0.0)
    confidence = np.unique(labeled.probabilities.max(axis=1))[::-1]
    last = int(allowed[-1])
    return Referral(float(confidence[last]), risk, float(curve.coverage[last]))


@dataclass(frozen=True)
class ConformalSets:
    """Sets of classes that contain the label with probability at least 1 - alpha.

    A set contains the classes whose score 1 - p is at most `threshold`. `is_trivial` means that
    the val split is too small for alpha, so that every set contains all classes.
    """

    alpha: float
    threshold: float
    is_trivial: bool

    def predict_sets(self, probabilities: np.ndarray) -> np.ndarray:
        """True (n, K) for the classes in the set of each image."""
        return np.asarray((1 - probabilities <= self.threshold) | self.is_trivial)


def fit_conformal(table: PredictionTable, alpha: float) -> ConformalSets:
    """Split-conformal sets: the threshold is the k-th smallest score, k = ceil((n + 1)(1 - alpha)).

    The guarantee is for one image a patient: further images of a patient are not independent.
    Test is refused.
    """
    refuse_test(table, "a conformal threshold")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} must be between 0 and 1")
    labeled = table.labeled
    scores = np.sort(1 - labeled.probabilities[np.arange(len(labeled)), labeled.labels])
    k = int(np.ceil((len(scores) + 1) * (1 - alpha) - 1e-9))
    is_trivial = k > len(scores)
    return ConformalSets(alpha, 1.0 if is_trivial else float(scores[k - 1]), is_trivial)
