"""Answering only when sure: risk against coverage, a referral threshold, sets of classes."""

from dataclasses import dataclass

import numpy as np

from evaluation.predictions import PredictionTable, refuse_test

COVERAGES = (0.8, 0.9, 0.95)


@dataclass(frozen=True)
class RiskCoverage:
    """Error rate among the images answered, at each share answered, most confident first.

    Images of equal confidence are answered together.
    """

    coverage: np.ndarray
    risk: np.ndarray

    @property
    def aurc(self) -> float:
        """Area under the curve: mean risk over images, each image's block answered whole."""
        steps = np.diff(self.coverage, prepend=0.0)
        return float((steps * self.risk).sum())

    def at(self, coverage: float) -> float:
        """Risk at the smallest share answered that is at least `coverage`."""
        return float(self.risk[np.searchsorted(self.coverage, coverage - 1e-12)])


def risk_coverage(probabilities: np.ndarray, labels: np.ndarray) -> RiskCoverage:
    """The curve for the largest probability as confidence."""
    confidence = probabilities.max(axis=1)
    wrong = probabilities.argmax(axis=1) != labels
    order = np.argsort(-confidence, kind="stable")
    last = np.append(np.diff(confidence[order]) != 0, True)
    answered = np.arange(1, len(order) + 1)[last]
    errors = wrong[order].cumsum()[last]
    return RiskCoverage(answered / len(order), errors / answered)


@dataclass(frozen=True)
class Referral:
    """Images whose largest probability is below `threshold` are referred to a person."""

    threshold: float
    asked_risk: float
    coverage_on_val: float

    def answered(self, probabilities: np.ndarray) -> np.ndarray:
        """True (n,) where the ensemble answers itself."""
        return np.asarray(probabilities.max(axis=1) >= self.threshold)


def fit_referral(table: PredictionTable, risk: float) -> Referral:
    """The lowest threshold whose risk on validation is at most `risk`; refused on test.

    Where even the surest images err more often, nothing is answered (threshold above 1).
    """
    refuse_test(table, "a referral threshold")
    known = table.labeled
    curve = risk_coverage(known.probabilities, known.labels)
    allowed = np.flatnonzero(curve.risk <= risk)
    if len(allowed) == 0:
        return Referral(float(np.nextafter(1.0, 2.0)), risk, 0.0)
    confidence = np.unique(known.probabilities.max(axis=1))[::-1]
    last = int(allowed[-1])
    return Referral(float(confidence[last]), risk, float(curve.coverage[last]))


@dataclass(frozen=True)
class Conformal:
    """Sets of classes that hold the true one with probability at least 1 - alpha.

    `limit` is the largest 1 - p that is still taken in; `whole` says that validation was too
    small for this alpha, so that every set holds every class.
    """

    alpha: float
    limit: float
    whole: bool

    def sets(self, probabilities: np.ndarray) -> np.ndarray:
        """True (n, K) where the class is in the image's set."""
        return np.asarray((1 - probabilities <= self.limit) | self.whole)


def fit_conformal(table: PredictionTable, alpha: float) -> Conformal:
    """Split-conformal limit: the k-th smallest score, k = ceil((n + 1) (1 - alpha)); not of test.

    The promise holds for one image a patient; further films of a patient are not new draws.
    """
    refuse_test(table, "a conformal limit")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} must lie between 0 and 1")
    known = table.labeled
    scores = np.sort(1 - known.probabilities[np.arange(len(known)), known.labels])
    k = int(np.ceil((len(scores) + 1) * (1 - alpha) - 1e-9))
    whole = k > len(scores)
    return Conformal(alpha, 1.0 if whole else float(scores[k - 1]), whole)
