"""A value with its interval; estimates of proportions, means and ratios."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from evaluation.stats.bootstrap import (
    CONFIDENCE_LEVEL,
    DRAWS,
    Clusters,
    Parts,
    Replicates,
    bootstrap,
)

BCA, CENTERED = "bootstrap over patients, BCa", "bootstrap over patients, centered"
WILSON = "Wilson, by patients"
BCA_AND_WILSON = f"{BCA}; {WILSON}, for classes without spread"
NO_SPREAD = "too few resamples have a value, or all have the same"
ONE_PATIENT = "an interval needs more than one patient"
PAIRS = "median of pairs, bootstrap"


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval, the method of the interval, and the sample size."""

    value: float | None  # None if it was not measured
    low: float | None  # None if there is no interval
    high: float | None
    method: str
    n: int  # images
    patients: int
    reason: str = ""  # why a number is None

    @property
    def decimals(self) -> int:
        """Decimals of the number in reports."""
        return decimals_of(self.n)


Estimates = dict[str, Estimate]


def decimals_of(n: int) -> int:
    """Decimals that n images can distinguish: 2 up to 100, 3 up to 1,000, else 4."""
    return 2 if n <= 100 else 3 if n <= 1000 else 4


def make_estimate(parts: Parts, method: str, n: int, patients: int, reason: str) -> Estimate:
    """The Estimate of (value, low, high): NaN becomes None, and `reason` is dropped without one."""
    value, low, high = (float(x) if np.isfinite(x) else None for x in parts)
    reason = reason if None in (value, low, high) else ""
    return Estimate(value, low, high, method, n, patients, reason)


def replicate_estimate(
    replicates: Replicates, at: int, size: tuple[int, int], if_undefined: str,
    fall: float = 0.0, rise: float = 0.0, minimum: float = 0.0, maximum: float = 1.0,
    shift: float = 0.0,
) -> Estimate:  # fmt: skip
    """Statistic `at` of `size` (images, patients), its interval within `minimum` to `maximum`.

    `fall` and `rise` are how far Wilson's bounds allow the true value to be below and above; they
    and the BCa interval are combined as independent errors. `shift` is added to all three numbers.
    """
    value, no_spread = float(replicates.value[at]), replicates.has_no_spread(at)
    low, high = replicates.bca_interval(at)
    if no_spread and fall + rise > 0:
        low = high = value
    low, high = value - np.hypot(value - low, fall), value + np.hypot(high - value, rise)
    low, high = np.maximum(low + shift, minimum), np.minimum(high + shift, maximum)
    is_widened = fall + rise > 0 and np.isfinite(value)
    method = WILSON if no_spread else BCA_AND_WILSON if is_widened else BCA
    reason = NO_SPREAD if np.isfinite(value) else if_undefined
    return make_estimate((value + shift, low, high), method, *size, reason)


def wilson_interval(hits: float, n: float) -> tuple[float, float]:
    """Wilson's score interval of the proportion hits / n; n must be above 0."""
    z = float(ndtri(0.5 + CONFIDENCE_LEVEL / 2))
    p, center = hits / n, (hits + z * z / 2) / (n + z * z)
    half = z / (n + z * z) * np.sqrt(n * p * (1 - p) + z * z / 4)
    low, high = float(center - half), float(center + half)
    return 0.0 if hits == 0 else max(0.0, low), 1.0 if hits == n else min(1.0, high)


def mean_estimate(
    patients: np.ndarray, values: np.ndarray, if_empty: str = "there is no image",
    draws: int = DRAWS, seed: int = 0,
) -> Estimate:  # fmt: skip
    """The mean of `values` (n,), or the proportion of those that are True.

    Patients are resampled, except for a proportion of one image a patient or without any spread:
    it has Wilson's interval, each patient counting once. `if_empty` is the reason if n is 0.
    """
    n, num_patients = len(values), len(np.unique(patients.astype(str)))
    if n == 0:
        return Estimate(None, None, None, "none", 0, 0, if_empty)
    value, all_agree = float(values.astype(float).mean()), values.all() or not values.any()
    if values.dtype == bool and (num_patients == n or all_agree):
        interval = wilson_interval(round(value * num_patients), num_patients)
        method = "Wilson" if num_patients == n else WILSON
        return Estimate(value, *interval, method, n, num_patients)
    if num_patients == 1:
        return Estimate(value, None, None, "none", n, 1, ONE_PATIENT)
    clusters = Clusters.from_patients(patients, np.zeros(n, dtype=np.int64))
    sums = clusters.sum_by_patient(np.column_stack([values.astype(float), np.ones(n)]))
    replicates = bootstrap(sums, lambda s: s[:, :1] / s[:, 1:], clusters, draws, seed)
    parts = (value, *replicates.bca_interval(0))
    return make_estimate(parts, BCA, n, num_patients, NO_SPREAD)


def ratio_estimate(pairs: Sequence[tuple[float, float]], seed: int = 0) -> Estimate:
    """Median of first / second over pairs of measurements, with bootstrap percentiles."""
    # slowdowns that affect both measurements of a pair cancel
    ratios = np.array([first / second for first, second in pairs])
    if not len(ratios):
        return unmeasured_ratio("no pair was measured")
    resampled = np.random.default_rng(seed).choice(ratios, (DRAWS, len(ratios)))
    low, high = np.quantile(np.median(resampled, axis=1), [0.025, 0.975])
    return Estimate(float(np.median(ratios)), float(low), float(high), PAIRS, len(ratios), 0)


def unmeasured_ratio(reason: str) -> Estimate:
    """The estimate of a ratio that was not measured."""
    return Estimate(None, None, None, PAIRS, 0, 0, reason)
