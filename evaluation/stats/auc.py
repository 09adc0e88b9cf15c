"""Area under the ROC curve, with intervals that know which images share a patient."""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit, ndtri, stdtr, stdtrit
from scipy.stats import rankdata

from evaluation.stats.clusters import Clusters
from evaluation.stats.estimate import LEVEL, TIE


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a positive scores above a negative, ties one half; NaN without both."""
    m = int(positive.sum())
    n = len(positive) - m
    if m == 0 or n == 0:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - m * (m + 1) / 2) / (m * n))


def one_vs_rest(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUC of each class against the others, (K,); NaN for a class that is absent or alone."""
    return np.array([auc(scores[:, c], labels == c) for c in range(scores.shape[1])])


@dataclass(frozen=True)
class Areas:
    """J areas under ROC curves (J,), their covariance (J, J), and what each rests on.

    `positives` and `negatives` count the patients that have such an image.
    """

    value: np.ndarray
    covariance: np.ndarray
    positives: np.ndarray
    negatives: np.ndarray

    def mean(self, at: np.ndarray) -> tuple[float, float, float]:
        """Mean of the areas at positions `at` with its interval, inside (0, 1]."""
        weights = np.zeros(len(self.value))
        weights[at] = 1 / len(at)
        value = float(self.value[at].mean())
        error = self._error(weights)
        if error > 0 and 0 < value < 1:
            half = self.quantile(at) * error / (value * (1 - value))
            return value, float(expit(logit(value) - half)), float(expit(logit(value) + half))
        exact = [newcombe(self.value[j], self.positives[j], self.negatives[j]) for j in at]
        low, high = np.mean(exact, axis=0)
        return value, float(low), float(high)

    def difference(
        self, first: np.ndarray, second: np.ndarray
    ) -> tuple[float, float, float, float]:
        """Mean area at `first` minus mean area at `second`, paired: value, low, high, p-value.

        Where the two never order a positive and a negative otherwise, there is no error to go by:
        they may yet differ as far as a perfect area may lie below 1.
        """
        weights = np.zeros(len(self.value))
        weights[first] += 1 / len(first)
        weights[second] -= 1 / len(second)
        value = float(self.value[first].mean() - self.value[second].mean())
        error, both = self._error(weights), np.concatenate([first, second])
        if error**2 <= TIE * (weights**2 @ np.diag(self.covariance)):
            room = 1 - self._perfect(both) if abs(value) <= TIE else np.nan
            return value, value - room, value + room, 1.0
        half, known = self.quantile(both) * error, np.isfinite(value)
        p = float(2 * stdtr(self._freedom(both), -abs(value) / error)) if known else 1.0
        return value, value - half, value + half, p

    def quantile(self, at: np.ndarray) -> float:
        """Student's, one degree of freedom fewer than there are patients of the scarcer kind.

        With 30 positive patients of 4 images the normal quantile covers 92.5 %, this 93.7 %.
        """
        return float(stdtrit(self._freedom(at), 0.5 + LEVEL / 2))

    def _perfect(self, at: np.ndarray) -> float:
        """The lower end of the mean area at `at` if all areas were 1."""
        lows = [newcombe(1.0, self.positives[j], self.negatives[j])[0] for j in at]
        return float(np.mean(lows))

    def _freedom(self, at: np.ndarray) -> int:
        return max(1, int(min(self.positives[at].min(), self.negatives[at].min())) - 1)

    def _error(self, weights: np.ndarray) -> float:
        return float(np.sqrt(max(0.0, weights @ self.covariance @ weights)))


def areas(scores: np.ndarray, positive: np.ndarray, clusters: Clusters) -> Areas:
    """DeLong's covariance of J areas, cluster-robust after Obuchowski (1997).

    `scores` and `positive` are (n, J). With one image a patient it is DeLong's to the digit.
    """
    columns = [_components(s, p) for s, p in zip(scores.T, positive.T, strict=True)]
    value = np.array([auc(s, p) for s, p in zip(scores.T, positive.T, strict=True)])
    parts = clusters.total(np.hstack([np.column_stack(c) for c in columns]))
    has = np.empty(parts.shape, dtype=bool)
    has[:, 0::2] = clusters.total(positive.astype(float)) > 0
    has[:, 1::2] = clusters.total((~positive).astype(float)) > 0
    covariance = parts.T @ parts * _small_sample(has)
    fold = np.kron(np.eye(len(value)), np.ones((1, 2)))
    counts = has.sum(axis=0)
    return Areas(value, fold @ covariance @ fold.T, counts[0::2], counts[1::2])


def _components(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Centerd placements of positives and of negatives, each divided by its own count."""
    m, n = int(positive.sum()), int((~positive).sum())
    above, below = np.zeros(len(scores)), np.zeros(len(scores))
    if m and n:
        ranks = rankdata(scores)
        area = (ranks[positive].sum() - m * (m + 1) / 2) / (m * n)
        above[positive] = (ranks[positive] - rankdata(scores[positive])) / n - area
        below[~positive] = 1 - (ranks[~positive] - rankdata(scores[~positive])) / m - area
    return above / max(m, 1), below / max(n, 1)


def _small_sample(has: np.ndarray) -> np.ndarray:
    """I / (I - 1) for each pair of components, I the patients that have either of them."""
    indicator = has.astype(float)
    own = indicator.sum(axis=0)
    either = own[:, None] + own[None, :] - indicator.T @ indicator
    return np.where(either > 1, either / np.maximum(either - 1, 1), 0.0)


def newcombe(value: float, positives: int, negatives: int) -> tuple[float, float]:
    """Newcombe's (2006) method 5: a score interval that stays wide at an area of 0 or 1."""
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
