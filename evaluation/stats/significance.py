"""P-values: exact tests of paired answers, redraws, and Holm's correction."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import binomtest

from evaluation.predictions import PredictionTable
from evaluation.stats.clusters import Clusters

Pair = tuple[PredictionTable, PredictionTable]


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test; 1 where the two never differ."""
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(x) for x in adjusted]


def sign_test(pairs: Sequence[Pair], clusters: Clusters) -> float:
    """Exact two-sided p-value: for how many patients the first is right more often, or less.

    With one image a patient it is McNemar's test.
    """
    right = [[t.logits.argmax(axis=1) == t.labels for t in pair] for pair in pairs]
    gaps = np.sum([first.astype(float) - second for first, second in right], axis=0)
    each = clusters.total(gaps[:, None])
    return mcnemar(each[:, 0] > 0, each[:, 0] < 0)


def far_side(redrawn: np.ndarray) -> float:
    """Two-sided p-value: how rarely the redraws fall on the far side of no difference."""
    usable = redrawn[np.isfinite(redrawn)]
    if len(usable) == 0:
        return 1.0
    tail = min((usable <= 0).sum(), (usable >= 0).sum()) + 1
    return float(min(1.0, 2 * tail / (len(usable) + 1)))
