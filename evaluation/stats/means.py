"""A mean over images with its interval over patients; of truths it is their share."""

import numpy as np

from evaluation.stats.clusters import Clusters
from evaluation.stats.estimate import DRAWS, Estimate, bootstrap, make_estimate, wilson

SAME = "all images agree, or too few redraws have one"


def mean(
    patients: np.ndarray,
    values: np.ndarray,
    none: str = "there is no image",
    draws: int = DRAWS,
    seed: int = 0,
) -> Estimate:
    """The mean of `values` (n,), or the share of those that are true; `none` says why n is 0.

    A share has Wilson's interval where each patient gives one image, and where all images agree,
    which leaves nothing to redraw: a patient then counts once. All else is redrawn by patients.
    """
    n, people = len(values), len(np.unique(patients.astype(str)))
    if n == 0:
        return Estimate(None, None, None, "none", 0, 0, none)
    agreed = values.all() or not values.any()
    if values.dtype != bool or not (people == n or agreed):
        return _redrawn(patients, values.astype(float), draws, seed)
    value = float(values.mean())
    method = "Wilson" if people == n else "Wilson, by patients"
    return Estimate(value, *wilson(round(value * people), people), method, n, people)


def _redrawn(patients: np.ndarray, values: np.ndarray, draws: int, seed: int) -> Estimate:
    clusters = Clusters.make(patients, np.zeros(len(values), dtype=np.int64))
    sums = clusters.total(np.column_stack([values, np.ones(len(values))]))
    drawn = bootstrap(sums, lambda s: s[:, :1] / s[:, 1:], clusters, draws, seed)
    parts = (float(values.mean()), *drawn.interval(0))
    return make_estimate(parts, "patient bootstrap, BCa", len(values), clusters.count, SAME)
