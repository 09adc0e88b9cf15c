"""Area under the ROC curve, with intervals that respect which images share a patient."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtri, stdtr, stdtrit

from evaluation.stats.bootstrap import CONFIDENCE_LEVEL, TIE, Clusters


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """AUROC of scores (n,), ties count one half; NaN unless there are positives and negatives."""
    return _placements(scores, positive)[0]


@dataclass(frozen=True)
class Areas:
    """J areas under ROC curves (J,) and their covariance (J, J)."""

    value: np.ndarray
    covariance: np.ndarray
    positives: np.ndarray  # number of patients (J,) with such an image
    negatives: np.ndarray

    def mean(self, at: np.ndarray) -> tuple[float, float, float]:
        """Mean of the areas at positions `at` with its interval, within [0, 1].

        An area without variance, such as 1, widens it as its own interval by Newcombe would.
        """
        weights = np.zeros(len(self.value))
        weights[at] = 1 / len(at)
        value, error = float(self.value[at].mean()), self._standard_error(weights)
        low = high = value
        if error > 0 and 0 < value < 1:  # symmetric in the logit
            half = self._t_quantile(at) * error / (value * (1 - value))
            low, high = float(expit(logit(value) - half)), float(expit(logit(value) + half))
        if (constant := at[self.is_constant(at)]).size:
            ends = np.array(self._newcombe_mean(self.value, constant))
            low, high = (ends - self.value[constant].mean()) * constant.size / at.size + (low, high)
        return value, float(np.clip(low, 0, 1)), float(np.clip(high, 0, 1))

    def is_constant(self, at: np.ndarray) -> np.ndarray:
        """Which areas at positions `at` have no variance."""
        return np.asarray(np.diag(self.covariance)[at] <= TIE**2)

    def difference(
        self, first: np.ndarray, second: np.ndarray
    ) -> tuple[float, float, float, float]:
        """Mean area at `first` minus mean area at `second`, paired: value, low, high, p-value."""
        weights = np.zeros(len(self.value))
        weights[first] += 1 / len(first)
        weights[second] -= 1 / len(second)
        value = float(self.value[first].mean() - self.value[second].mean())
        error, both = self._standard_error(weights), np.concatenate([first, second])
        if error**2 <= TIE * (weights**2 @ np.diag(self.covariance)):
            perfect = np.ones_like(self.value)  # equal rankings: as wide as of a perfect area
            half = 1 - self._newcombe_mean(perfect, both)[0] if abs(value) <= TIE else np.nan
            return value, value - half, value + half, 1.0
        half, is_known = self._t_quantile(both) * error, np.isfinite(value)
        p = 2 * stdtr(self._degrees_of_freedom(both), -abs(value) / error) if is_known else 1.0
        return value, value - half, value + half, float(p)

    def _t_quantile(self, at: np.ndarray) -> float:
        """Student's t quantile for `CONFIDENCE_LEVEL`, for the areas at positions `at`.

        Intervals of 30 patients cover 93.7 % with it, and 92.5 % with the normal quantile.
        """
        return float(stdtrit(self._degrees_of_freedom(at), 0.5 + CONFIDENCE_LEVEL / 2))

    def _newcombe_mean(self, value: np.ndarray, at: np.ndarray) -> tuple[float, float]:
        """Mean low and mean high of Newcombe's intervals of the areas `value` at `at`."""
        ends = [newcombe_interval(value[j], self.positives[j], self.negatives[j]) for j in at]
        low, high = np.mean(ends, axis=0)
        return float(low), float(high)

    def _degrees_of_freedom(self, at: np.ndarray) -> int:
        """Fewest patients with a positive, or a negative, image in any area `at`, minus one."""
        return max(1, int(min(self.positives[at].min(), self.negatives[at].min())) - 1)

    def _standard_error(self, weights: np.ndarray) -> float:
        """Standard error of the sum of the areas times `weights` (J,)."""
        return float(np.sqrt(max(0.0, weights @ self.covariance @ weights)))


def delong(scores: np.ndarray, positive: np.ndarray, clusters: Clusters) -> Areas:
    """J areas with DeLong's covariance (1988), cluster-robust after Obuchowski (1997).

    `scores` and `positive` are (n, J). With one image a patient it is exactly DeLong's.
    """
    values, columns = zip(*map(_placements, scores.T, positive.T), strict=True)
    parts = clusters.sum_by_patient(np.hstack(columns))
    has_image = np.empty(parts.shape, dtype=bool)
    has_image[:, 0::2] = clusters.sum_by_patient(positive.astype(float)) > 0
    has_image[:, 1::2] = clusters.sum_by_patient((~positive).astype(float)) > 0
    covariance = parts.T @ parts * _small_sample_factor(has_image)
    fold = np.kron(np.eye(len(values)), np.ones((1, 2)))
    patients = has_image.sum(axis=0)
    return Areas(np.array(values), fold @ covariance @ fold.T, patients[0::2], patients[1::2])


def _placements(scores: np.ndarray, positive: np.ndarray) -> tuple[float, np.ndarray]:
    """AUROC, and centered DeLong placements (n, 2) of positives and negatives over their counts."""
    m, n = int(positive.sum()), int((~positive).sum())
    placements = np.zeros((len(scores), 2))
    if m == 0 or n == 0:
        return float("nan"), placements
    from scipy.stats import rankdata  # slow to import: a third of `consilium experiment status`

    ranks = rankdata(scores)
    area = (ranks[positive].sum() - m * (m + 1) / 2) / (m * n)
    placements[positive, 0] = ((ranks[positive] - rankdata(scores[positive])) / n - area) / m
    below = 1 - (ranks[~positive] - rankdata(scores[~positive])) / m - area
    placements[~positive, 1] = below / n
    return float(area), placements


def _small_sample_factor(has_image: np.ndarray) -> np.ndarray:
    """I / (I - 1) for each two columns (2 J, 2 J); I patients have an image of either of them."""
    indicator = has_image.astype(float)
    own = indicator.sum(axis=0)
    either = own[:, None] + own[None, :] - indicator.T @ indicator
    return np.where(either > 1, either / np.maximum(either - 1, 1), 0.0)


def newcombe_interval(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """Newcombe's (2006) method 5: a score interval that is not empty at an area of 0 or 1."""
    m, n = int(positives), int(negatives)
    if m == 0 or n == 0 or not np.isfinite(value):
        return np.nan, np.nan
    z, star = float(ndtri(0.5 + CONFIDENCE_LEVEL / 2)), (m + n) / 2 - 1

    def gap(a: float) -> float:
        """0 if `a` is an end of the interval."""
        spread = 1 + star * (1 - a) / (2 - a) + star * a / (1 + a)
        return float((a - value) ** 2 - z * z * a * (1 - a) * spread / (m * n))

    low = 0.0 if value <= 0 else brentq(gap, 0.0, value * (1 - 1e-12))
    high = 1.0 if value >= 1 else brentq(gap, min(1.0, value * (1 + 1e-12) + 1e-15), 1.0)
    return float(low), float(high)
