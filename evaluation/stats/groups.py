"""A metric of groups of images and its differences between them, clustered by patient."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

from evaluation.stats.auc import Areas
from evaluation.stats.bootstrap import CONFIDENCE_LEVEL
from evaluation.stats.estimate import Estimate, make_estimate, wilson_interval

MIN_PATIENTS = 20  # of a group
MIN_OF_KIND = 5  # patients of a group with the images that a metric needs, such as positives
T_TEST = "cluster-robust, Student's t"
TOO_FEW = f"fewer than {MIN_OF_KIND} patients with, or without, the outcome"
Counts = list[np.ndarray]  # rows of each patient, (patients,), of each kind


def count_patients(patient: np.ndarray) -> int:
    """Number of different patients of some rows, integers from 0."""
    return int(np.count_nonzero(np.bincount(patient)))


@dataclass(frozen=True)
class Gap:
    """Difference of two groups, its standard error and degrees of freedom."""

    value: float
    standard_error: float
    degrees_of_freedom: int

    @property
    def p_value(self) -> float:
        """Two-sided p-value of no difference."""
        ratio = abs(self.value) / self.standard_error if self.standard_error > 0 else 0.0
        return 2 * float(stdtr(self.degrees_of_freedom, -ratio))

    def half_width(self, comparisons: int = 1) -> float:
        """Half of the width of the interval, by Bonferroni for `comparisons` differences."""
        quantile = stdtrit(self.degrees_of_freedom, 1 - (1 - CONFIDENCE_LEVEL) / 2 / comparisons)
        return float(quantile) * self.standard_error


@dataclass(frozen=True)
class GroupMetric:
    """A mean, or an area under the ROC curve, of any part of n rows that a mask selects.

    Only the m rows in the mask `selected` (n,) count. The metric is the mean of their `values`
    (m,), of booleans for a proportion; with `positive` (m,), an area, whose values are ranks.
    """

    selected: np.ndarray
    values: np.ndarray
    patient: np.ndarray  # (m,), integers from 0
    positive: np.ndarray | None = None

    @classmethod
    def mean(
        cls, values: np.ndarray, patient: np.ndarray, selected: np.ndarray | None = None
    ) -> "GroupMetric":
        """The mean of values (n,) of all rows or of those selected."""
        selected = np.ones(len(values), dtype=bool) if selected is None else selected
        return cls(selected, values[selected], patient[selected])

    @classmethod
    def auroc(cls, scores: np.ndarray, patient: np.ndarray, positive: np.ndarray) -> "GroupMetric":
        """The area under the ROC curve of scores (n,)."""
        ranks = np.unique(scores, return_inverse=True)[1]
        return cls(np.ones(len(scores), dtype=bool), ranks, patient, positive)

    def difference(self, rows: np.ndarray, others: np.ndarray) -> Gap | None:
        """Value of `rows` minus that of `others`, masks (n,); None with too few patients.

        The larger of two variances counts: that of the observed rows, and that of rows that are
        distributed alike in both parts, as a small group may show no error, or only errors.
        """
        first, second = (np.flatnonzero(mask[self.selected]) for mask in (rows, others))
        counts, counts_of_others = self._counts(first), self._counts(second)
        patients = min(int(np.count_nonzero(of)) for of in (*counts, *counts_of_others))
        if patients < MIN_OF_KIND:
            return None
        (value, error), (other, error_of_others) = self._influence(first), self._influence(second)
        errors = self._by_patient(first, error) - self._by_patient(second, error_of_others)
        observed = float(errors @ errors) * patients / (patients - 1)
        variance = max(observed, self._variance_if_equal(counts, counts_of_others))
        return Gap(value - other, float(np.sqrt(variance)), patients - 1)

    def estimate(self, mask: np.ndarray) -> Estimate:
        """The value of the rows of a mask (n,), and its interval by patients."""
        rows = np.flatnonzero(mask[self.selected])
        counts = self._counts(rows)
        kinds = [int(np.count_nonzero(of)) for of in counts]
        patients = count_patients(self.patient[rows])
        size = len(rows), patients, TOO_FEW
        if min(kinds) < MIN_OF_KIND:
            return make_estimate((np.nan, np.nan, np.nan), "none", *size)
        value, error = self._influence(rows)
        errors, freedom = self._by_patient(rows, error), min(kinds) - 1
        variance = float(errors @ errors) * (freedom + 1) / freedom
        if self.positive is not None:
            area = Areas(np.array([value]), np.array([[variance]]), *np.array(kinds)[:, None])
            return make_estimate(area.mean(np.array([0])), "cluster-robust DeLong", *size)
        quantile = float(stdtrit(freedom, 0.5 + CONFIDENCE_LEVEL / 2))
        if self.values.dtype != bool:
            half = quantile * np.sqrt(variance)
            return make_estimate((value, value - half, value + half), T_TEST, *size)
        effective = float(len(rows) if variance else patients)  # independent images
        if variance and patients < len(rows):
            factor = (float(ndtri(0.5 + CONFIDENCE_LEVEL / 2)) / quantile) ** 2
            effective = min(value * (1 - value) / variance * factor, effective)
        method = "Wilson" if patients == len(rows) else "Wilson, effective number of images"
        return make_estimate((value, *wilson_interval(value * effective, effective)), method, *size)

    def _counts(self, rows: np.ndarray) -> Counts:
        """Number of rows of each patient: of all, or of positives and of negatives."""
        parts = [rows]
        if self.positive is not None:
            parts = [rows[self.positive[rows]], rows[~self.positive[rows]]]
        return [np.bincount(self.patient[part], minlength=self._num_patients) for part in parts]

    @cached_property
    def _num_patients(self) -> int:
        return int(self.patient.max(initial=-1)) + 1

    def _by_patient(self, rows: np.ndarray, error: np.ndarray) -> np.ndarray:
        """Sums (patients,) of the influences `error` of rows, by patient."""
        return np.bincount(self.patient[rows], error, self._num_patients)

    def _influence(self, rows: np.ndarray) -> tuple[float, np.ndarray]:
        """The metric on the m rows at `rows`, and the influence (m,) of each row on it."""
        values = self.values[rows]
        if self.positive is None:
            value = float(values.mean())
            return value, (values - value) / len(rows)
        is_positive = self.positive[rows]
        size, count = int(self.values.max()) + 1, int(is_positive.sum())
        positives = np.bincount(values[is_positive], minlength=size)
        negatives = np.bincount(values[~is_positive], minlength=size)
        below = (negatives.cumsum() - negatives / 2) / (len(rows) - count)  # placements
        above = 1 - (positives.cumsum() - positives / 2) / count
        placed = np.where(is_positive, below[values], above[values])
        value = float(placed[is_positive].mean())
        return value, (placed - value) / np.where(is_positive, count, len(rows) - count)

    @cached_property
    def _spread(self) -> list[tuple[float, float]]:
        """Variance, and correlation within a patient, of the rows of each kind."""
        rows = np.arange(len(self.values))
        residuals, spread = self._influence(rows)[1], list[tuple[float, float]]()
        kinds = [rows] if self.positive is None else [rows[self.positive], rows[~self.positive]]
        for kind, counts in zip(kinds, self._counts(rows), strict=True):
            own, n = residuals[kind] * len(kind), len(kind)
            of_patient, squares = self._by_patient(kind, own), float(own @ own)
            couples, patients = float(counts @ counts) - n, np.count_nonzero(counts)
            if squares == 0:  # as if 2 of 4 more patients were different, as Agresti and Coull
                spread.append((2 * (patients + 2) / (patients + 4) ** 2, 1.0))
                continue
            common = (float(of_patient @ of_patient) - squares) / couples if couples else 0.0
            spread.append((squares / n, min(max(common / squares * n, 0.0), 1.0)))
        return spread

    def _variance_if_equal(self, first: Counts, second: Counts) -> float:
        """Variance of the difference of two parts if the rows of both are distributed alike."""
        total = 0.0
        for own, others, (variance, correlation) in zip(first, second, self._spread, strict=True):
            n, m = own.sum(), others.sum()
            weights, independent = own / n - others / m, 1 / n + 1 / m
            squares = (1 - correlation) * independent + correlation * float(weights @ weights)
            total += variance * squares
        return total
