"""Conformal prediction: sets of classes that contain the label at a stated rate, by patient."""

from dataclasses import dataclass

import numpy as np
from scipy.stats import betabinom

from evaluation.predictions import PredictionTable, has_grades, refuse_test
from evaluation.stats.bootstrap import CONFIDENCE_LEVEL
from evaluation.stats.estimate import Estimate, mean_estimate

BY_CLASS = "class"  # limits of each class; other names are attributes


@dataclass(frozen=True)
class Limit:
    """Sets have the classes with scores up to `value`, which was fitted on patients of val."""

    value: float  # infinite with too few patients
    rank: int  # of the limit among the scores of the patients
    num_patients: int

    def coverage_band(self, num_patients: int) -> tuple[float, float]:
        """Low and high end of the range in which 95 % of coverages on so many new patients are.

        Patients of val and new patients vary. (1, 1) if the limit is infinite.
        """
        if np.isinf(self.value):
            return 1.0, 1.0
        later = self.num_patients + 1 - self.rank
        low, high = betabinom(num_patients, self.rank, later).interval(CONFIDENCE_LEVEL)
        return float(low / num_patients), float(high / num_patients)


@dataclass(frozen=True)
class ConformalSets:
    """Sets of classes by limits that were fitted on val.

    An image of a new patient has its label in the set at a rate of at least 1 - ``alpha``: among
    all images, among those of each class (``by`` is "class"), or of each value of an attribute.
    """

    alpha: float
    by: str  # "" for all images, "class", or an attribute
    limits: dict[str, Limit]  # by class or by value of the attribute; one of the name "" for all
    is_graded: bool

    def __call__(self, probabilities: np.ndarray, groups: np.ndarray | None = None) -> np.ndarray:
        """Whether each class is in the set of each row, (n, K).

        ``groups`` (n,) are the values of the attribute, if there is one; an image of a value that
        val did not have gets all classes.
        """
        limits = {name: limit.value for name, limit in self.limits.items()}
        of_row = np.array(list(limits.values()))  # one for all, or one for each class
        if groups is not None:
            of_row = np.array([limits.get(str(value), np.inf) for value in groups])[:, None]
        return np.asarray(set_scores(probabilities, self.is_graded) <= of_row)

    def of_table(self, table: PredictionTable) -> np.ndarray:
        """Whether each class is in the set of each row of a table, (n, K)."""
        has_attribute = self.by not in ("", BY_CLASS)
        return self(table.probabilities, table.rows[self.by].to_numpy() if has_attribute else None)


def set_scores(probabilities: np.ndarray, is_graded: bool) -> np.ndarray:
    """Nonconformity scores (n, K): a set has the classes with a score up to the limit.

    A score is 1 - p. For grades, sets grow from the most probable grade to its neighbors, the more
    probable one first; a score is the sum of the probabilities of the grades before.
    """
    if not is_graded:
        return 1 - probabilities
    n, num_classes = probabilities.shape
    rows, padded = np.arange(n), np.pad(probabilities, ((0, 0), (1, 1)), constant_values=-1.0)
    low = high = padded.argmax(axis=1)  # ends of the interval, in columns of `padded`
    total, scores = padded[rows, low], np.zeros_like(padded)
    for _ in range(num_classes - 1):
        goes_down = padded[rows, low - 1] >= padded[rows, high + 1]
        low, high = low - goes_down, high + ~goes_down
        entered = np.where(goes_down, low, high)
        scores[rows, entered] = total
        total = total + padded[rows, entered]
    return scores[:, 1:-1]


def fit_conformal_sets(val: PredictionTable, alpha: float, by: str = "") -> ConformalSets:
    """Sets with a limit for all images or each class or value of `by`; ValueError for test rows."""
    refuse_test(val, "a conformal limit")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha {alpha} must be between 0 and 1")
    labeled, is_graded = val.labeled, has_grades(val.class_names)
    scores = set_scores(labeled.probabilities, is_graded)[np.arange(len(labeled)), labeled.labels]
    groups, names = group_of_row(labeled, by)
    limits = {}
    for name in names:
        in_group = groups == name
        limits[name] = fit_limit(scores[in_group], labeled.patients[in_group], alpha)
    return ConformalSets(alpha, by, limits, is_graded)


def group_of_row(table: PredictionTable, by: str) -> tuple[np.ndarray, list[str]]:
    """Name of each row's group (n,): its class, attribute or ""; and the names of all groups."""
    if by == BY_CLASS:
        return table.label_names, table.class_names
    groups = table.rows[by].astype(str).to_numpy() if by else np.full(len(table), "")
    return groups, sorted(set(groups)) if by else [""]


def fit_limit(scores: np.ndarray, patients: np.ndarray, alpha: float) -> Limit:
    """Limit: the k-th smallest score of P patients, k = ceil((P + 1)(1 - alpha)), or infinite.

    Images of a patient are not exchangeable with those of others. Each image counts as 1 / m of a
    patient with m images: the mean over all ways to draw one image of each patient.
    """
    _, patient, count = np.unique(patients.astype(str), return_inverse=True, return_counts=True)
    rank = int(np.ceil((len(count) + 1) * (1 - alpha) - 1e-9))
    if rank > len(count):
        return Limit(np.inf, rank, len(count))
    order = np.argsort(scores)
    patients_so_far = np.cumsum(1 / count[patient[order]])
    return Limit(
        float(scores[order][np.searchsorted(patients_so_far, rank - 1e-9)]), rank, len(count)
    )


@dataclass(frozen=True)
class SetCoverage:
    """How often the sets of some test images contain the label."""

    group: str
    coverage: Estimate
    set_size: Estimate  # mean number of classes
    limit: Limit | None  # fitted for this group alone; None if for all images
    band: tuple[float, float] | None  # of the coverage, where the limit is for this group


def evaluate_sets(sets: ConformalSets, test: PredictionTable, by: str) -> list[SetCoverage]:
    """Coverage on test of all images (``by`` is ""), of each class, or of each value."""
    test = test.labeled
    is_in = sets.of_table(test)
    is_covered, sizes = is_in[np.arange(len(test)), test.labels], is_in.sum(axis=1)
    groups, names = group_of_row(test, by)
    coverages = []
    for name in names:
        rows = groups == name
        patients = test.patients[rows]
        limit = sets.limits.get(name) if by == sets.by else None
        band = limit.coverage_band(len(set(patients))) if limit and rows.any() else None
        coverage, size = (mean_estimate(patients, v[rows]) for v in (is_covered, sizes))
        coverages.append(SetCoverage(name, coverage, size, limit, band))
    return coverages
