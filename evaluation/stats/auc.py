"""Area under the ROC curve, with intervals that respect which images share a patient."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtri, stdtr, stdtrit
from scipy.stats import rankdata

from evaluation.stats.bootstrap import LEVEL, TIE, Clusters


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties one half; NaN without both."""
    m = int(positive.sum())
    n = len(positive) - m
    if m == 0 or n == 0:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - m * (m + 1) / 2) / (m * n))


def one_vs_rest(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUC of each class against the others, (K,); NaN for a class with no image or with all."""
    return np.array([auc(scores[:, c], labels == c) for c in range(scores.shape[1])])


@dataclass(frozen=True)
class Areas:
    """J areas under ROC curves (J,) and their covariance (J, J).

    `positives` and `negatives` (J,) are numbers of patients with such an image.
    """

    value: np.ndarray
    covariance: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    def mean(self, at: np.ndarray) -> tuple[float, float, float]:
        """Mean of the areas at positions `at` with its interval, within (0, 1].

        The interval is symmetric in the logit. Newcombe's is used for an area of 0 or 1.
        """
        weights = np.zeros(len(self.value))
        weights[at] = 1 / len(at)
        value = float(self.value[at].mean())
        error = self._standard_error(weights)
        if error > 0 and 0 < value < 1:
            half = self.quantile(at) * error / (value * (1 - value))
            return value, float(expit(logit(value) - half)), float(expit(logit(value) + half))
        intervals = [
            newcombe_interval(self.value[j], self.positives[j], self.negatives[j]) for j in at
        ]
        low, high = np.mean(intervals, axis=0)
        return value, float(low), float(high)

    def difference(
        self, first: np.ndarray, second: np.ndarray
    ) -> tuple[float, float, float, float]:
        """Mean area at `first` minus mean area at `second`, paired: value, low, high, p-value.

        If both rank all positives against all negatives equally, there is no standard error: the
        interval is then as wide as that of a perfect area.
        """
        weights = np.zeros(len(self.value))
        weights[first] += 1 / len(first)
        weights[second] -= 1 / len(second)
        value = float(self.value[first].mean() - self.value[second].mean())
        error, both = self._standard_error(weights), np.concatenate([first, second])
        if error**2 <= TIE * (weights**2 @ np.diag(self.covariance)):
            half = 1 - self._lower_bound_if_perfect(both) if abs(value) <= TIE else np.nan
            return value, value - half, value + half, 1.0
        half, is_known = self.quantile(both) * error, np.isfinite(value)
        p = 2 * stdtr(self._degrees_of_freedom(both), -abs(value) / error) if is_known else 1.0
        return value, value - half, value + half, float(p)

    def quantile(self, at: np.ndarray) -> float:
        """Student's quantile, with one degree of freedom less than patients of the rarer kind.

        With 30 positive patients of 4 images each, intervals by the normal quantile cover the
        truth in 92.5 % of simulations, by this one in 93.7 %.
        """
        return float(stdtrit(self._degrees_of_freedom(at), 0.5 + LEVEL / 2))

    def _lower_bound_if_perfect(self, at: np.ndarray) -> float:
        """Lower end of the interval of the mean area at `at` if all areas were 1."""
        lows = [newcombe_interval(1.0, self.positives[j], self.negatives[j])[0] for j in at]
        return float(np.mean(lows))

    def _degrees_of_freedom(self, at: np.ndarray) -> int:
        return max(1, int(min(self.positives[at].min(), self.negatives[at].min())) - 1)

    def _standard_error(self, weights: np.ndarray) -> float:
        return float(np.sqrt(max(0.0, weights @ self.covariance @ weights)))


def delong(scores: np.ndarray, positive: np.ndarray, clusters: Clusters) -> Areas:
    """J areas with DeLong's covariance (1988), cluster-robust after Obuchowski (1997).

    `scores` and `positive` are (n, J). With one image a patient it is exactly DeLong's.
    """
    columns = [_components(s, p) for s, p in zip(scores.T, positive.T, strict=True)]
    value = np.array([auc(s, p) for s, p in zip(scores.T, positive.T, strict=True)])
    parts = clusters.sum_by_patient(np.hstack([np.column_stack(c) for c in columns]))
    has_image = np.empty(parts.shape, dtype=bool)
    has_image[:, 0::2] = clusters.sum_by_patient(positive.astype(float)) > 0
    has_image[:, 1::2] = clusters.sum_by_patient((~positive).astype(float)) > 0
    covariance = parts.T @ parts * _small_sample_factor(has_image)
    fold = np.kron(np.eye(len(value)), np.ones((1, 2)))
    patients = has_image.sum(axis=0)
    return Areas(value, fold @ covariance @ fold.T, patients[0::2], patients[1::2])


def _components(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centered placements of positives and of negatives, each divided by its own count."""
    m, n = int(positive.sum()), int((~positive).sum())
    above, below = np.zeros(len(scores)), np.zeros(len(scores))
    if m and n:
        ranks = rankdata(scores)
        area = (ranks[positive].sum() - m * (m + 1) / 2) / (m * n)
        above[positive] = (ranks[positive] - rankdata(scores[positive])) / n - area
        below[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive])) / m - area
    return above / max(m, 1), below / max(n, 1)


def _small_sample_factor(has_image: np.ndarray) -> np.ndarray:
    """I / (I - 1) for each pair of components, I the number of patients with either of them."""
    indicator = has_image.astype(float)
    own = indicator.sum(axis=0)
    either = own[:, None] + own[None, :] - indicator.T @ indicator
    return np.where(either > 1, either / np.maximum(either - 1, 1), 0.0)


def newcombe_interval(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """Newcombe's (2006) method 5: a score interval that is not empty at an area of 0 or 1."""
    m, n = int(positives), int(negatives)
    if m == 0 or n == 0 or not np.isfinite(value):
        return np.nan, np.nan
    z, star = float(ndtri(0.5 + LEVEL / 2)), (m + n) / 2 - 1

    def gap(a: float) -> float:
        spread = 1 + star * (1 - a) / (2 - a) + star * a / (1 + a)
        return float((a - value) ** 2 - z * z * a * (1 - a) * spread / (m * n))

    low = 0.0 if value <= 0 else brentq(gap, 0.0, value * (1 - 1e-12))
    high = 1.0 if value >= 1 else brentq(gap, min(1.0, value * (1 + 1e-12) + 1e-15), 1.0)
    return float(low), float(high)
