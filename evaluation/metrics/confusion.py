"""Rates of one confusion matrix or a stack of them, and accuracy of one-versus-one pairs."""

from collections.abc import Callable, Sequence

import numpy as np

from evaluation.predictions import PredictionTable, class_pairs, has_grades
from evaluation.stats import estimate
from evaluation.stats.bootstrap import Clusters, bootstrap, one_hot
from evaluation.stats.estimate import Estimate, Estimates, mean_estimate, replicate_estimate

Rate = Callable[[np.ndarray], np.ndarray]  # matrices (..., K, K) -> (...) or (..., K)


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """Counts (K, K): rows are labels, columns are predictions."""
    cells = labels * num_classes + predictions
    counts = np.bincount(cells, minlength=num_classes * num_classes)
    return counts.reshape(num_classes, num_classes)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Quotient, NaN where the denominator is 0."""
    is_zero = denominator == 0
    return np.where(is_zero, np.nan, numerator / np.where(is_zero, 1, denominator))


def accuracy(m: np.ndarray) -> np.ndarray:
    """Fraction of images on the diagonal, for matrices (..., K, K)."""
    return ratio(np.trace(m, axis1=-2, axis2=-1), m.sum(axis=(-2, -1)))


def recall(m: np.ndarray) -> np.ndarray:
    """Recall (sensitivity) of each class (..., K); NaN for a class without images."""
    return ratio(_diagonal(m), m.sum(axis=-1))


def precision(m: np.ndarray) -> np.ndarray:
    """Precision of each class (..., K); NaN for a class never predicted."""
    return ratio(_diagonal(m), m.sum(axis=-2))


def specificity(m: np.ndarray) -> np.ndarray:
    """Fraction of the other classes' images not predicted as this class, (..., K)."""
    others = m.sum(axis=(-2, -1))[..., None] - m.sum(axis=-1)
    return 1 - ratio(m.sum(axis=-2) - _diagonal(m), others)


def npv(m: np.ndarray) -> np.ndarray:
    """Negative predictive value of each class (..., K); NaN for a class always predicted."""
    others = m.sum(axis=(-2, -1))[..., None] - m.sum(axis=-2)
    return 1 - ratio(m.sum(axis=-1) - _diagonal(m), others)


def number_needed_to_refer(m: np.ndarray) -> np.ndarray:
    """Images predicted as each class per correct one (..., K); NaN without a correct one."""
    return ratio(m.sum(axis=-2), _diagonal(m))


def at_prevalences(m: np.ndarray, prevalences: Sequence[float]) -> np.ndarray:
    """Confusion matrices of each class (last) against others, as fractions: (..., K, P, 2, 2)."""
    p = np.broadcast_to(prevalences, (*m.shape[:-1], len(prevalences)))
    hits, correct = recall(m)[..., None], specificity(m)[..., None]
    rows = [(1 - p) * correct, (1 - p) * (1 - correct), p * (1 - hits), p * hits]
    return np.stack(rows, axis=-1).reshape(*p.shape, 2, 2)


def ppv_at_prevalence(m: np.ndarray) -> np.ndarray:
    """Positive predictive values (r, K P) of `at_prevalences` (r, K, P, 2, 2)."""
    return precision(m)[..., 1].reshape(len(m), -1)


def npv_at_prevalence(m: np.ndarray) -> np.ndarray:
    """Negative predictive values (r, K P) of `at_prevalences` (r, K, P, 2, 2)."""
    return precision(m)[..., 0].reshape(len(m), -1)


def f1(m: np.ndarray) -> np.ndarray:
    """F1 of each class (..., K); NaN for a class without images."""
    score = ratio(2 * _diagonal(m), m.sum(axis=-1) + m.sum(axis=-2))
    return np.where(m.sum(axis=-1) > 0, score, np.nan)


def kappa(m: np.ndarray, quadratic: bool = False) -> np.ndarray:
    """Cohen's kappa of matrices (..., K, K), with quadratic weights for ordered classes."""
    k = m.shape[-1]
    distance = np.subtract.outer(np.arange(k), np.arange(k))
    cost = distance**2.0 if quadratic else (distance != 0).astype(float)
    by_chance = m.sum(axis=-1)[..., :, None] * m.sum(axis=-2)[..., None, :]
    total = m.sum(axis=(-2, -1))
    return 1 - ratio((m * cost).sum(axis=(-2, -1)) * total, (by_chance * cost).sum(axis=(-2, -1)))


def mcc(m: np.ndarray) -> np.ndarray:
    """Matthews' correlation for K classes; 0 when all labels or all predictions are one class."""
    total, correct = m.sum(axis=(-2, -1)), np.trace(m, axis1=-2, axis2=-1)
    labeled, predicted = m.sum(axis=-1), m.sum(axis=-2)
    variances = (total**2 - (labeled**2).sum(axis=-1)) * (total**2 - (predicted**2).sum(axis=-1))
    covariance = correct * total - (labeled * predicted).sum(axis=-1)
    score = ratio(covariance, np.sqrt(np.maximum(variances, 0.0)))
    return np.where(variances > 0, score, np.where(total > 0, 0.0, np.nan))


def macro_average(rate: Rate, m: np.ndarray) -> np.ndarray:
    """Mean of a per-class rate over classes, (...); NaN when a class has no image."""
    is_absent = (m.sum(axis=-1) == 0).any(axis=-1)
    # the precision of a class that is never predicted counts as 0, as in scikit-learn
    return np.where(is_absent, np.nan, np.nan_to_num(rate(m)).mean(axis=-1))


def weighted_average(rate: Rate, m: np.ndarray) -> np.ndarray:
    """Mean of a per-class rate weighted by the number of images of each class, (...)."""
    weights = ratio(m.sum(axis=-1), m.sum(axis=(-2, -1))[..., None])
    return np.asarray((np.nan_to_num(rate(m)) * weights).sum(axis=-1))


def _diagonal(m: np.ndarray) -> np.ndarray:
    return np.diagonal(m, axis1=-2, axis2=-1)


def pair_estimates(table: PredictionTable, clusters: Clusters, draws: int, seed: int) -> Estimates:
    """Accuracy of each pair of classes, mean of pairs, mean - accuracy; {} without pair logits."""
    if table.pair_logits is None:
        return {}
    patients, empty = table.patients, "neither class has an image"
    correct, counted = _correct_and_counted(table)
    estimates = {
        name: mean_estimate(patients[rows], is_correct[rows], empty, draws, seed)
        for name, is_correct, rows in zip(_pair_names(table), correct.T, counted.T, strict=True)
    }
    coupled = (table.predictions == table.labels)[:, None]
    columns = np.concatenate([correct, counted, coupled, np.ones_like(coupled)], axis=1)
    clusters, at = clusters.without_strata, len(estimates)
    sums = clusters.sum_by_patient(columns)
    replicates = bootstrap(sums, _pair_accuracies_of_sums, clusters, draws, seed)
    distances = [  # of pairs that are always or never right, which resamples do not vary
        (e.value - e.low, e.high - e.value)
        for e in estimates.values()
        if e.value in (0, 1) and e.low is not None and e.high is not None
    ]
    fall, rise = np.linalg.norm(np.reshape(distances, (-1, 2)), axis=0) / at
    size, absent = (len(table), clusters.num_patients), "a pair has no image"
    gap = (float(replicates.value[at + 1]), *replicates.bca_interval(at + 1))
    reason = estimate.NO_SPREAD if np.isfinite(gap[0]) else absent
    estimates["pairs"] = replicate_estimate(replicates, at, size, absent, float(fall), float(rise))
    return {**estimates, "pairs_gap": estimate.make_estimate(gap, estimate.BCA, *size, reason)}


def grade_estimates(table: PredictionTable, clusters: Clusters, draws: int, seed: int) -> Estimates:
    """Distance of predicted and true grade, also of the median grade; empty if no grades.

    The median grade is decided in place of the most probable one in metrics named `median_...`.
    """
    if not has_grades(table.class_names):
        return {}
    distance, of_median = (
        np.abs(grades - table.labels) for grades in (table.predictions, table.median_predictions)
    )
    values = {
        "grade_error": distance, "within_one_grade": distance <= 1,
        "median_accuracy": of_median == 0, "median_grade_error": of_median,
        "median_within_one_grade": of_median <= 1,
    }  # fmt: skip
    estimates = {
        name: mean_estimate(table.patients, value, draws=draws, seed=seed)
        for name, value in values.items()
    }
    kappa_of_median = _kappa_of_median(table, clusters, draws, seed)
    return {**estimates, "median_kappa_quadratic": kappa_of_median}


def _kappa_of_median(table: PredictionTable, clusters: Clusters, draws: int, seed: int) -> Estimate:
    """Quadratic kappa of the median grade."""
    k = len(table.class_names)

    def kappas(sums: np.ndarray) -> np.ndarray:
        """Kappa (r, 1) of cells (r, K x K) of confusion matrices."""
        return kappa(sums.reshape(-1, k, k), quadratic=True)[:, None]

    cells = one_hot(table.labels * k + table.median_predictions, k * k)
    replicates = bootstrap(clusters.sum_by_patient(cells), kappas, clusters, draws, seed)
    size = len(table), clusters.num_patients
    return replicate_estimate(replicates, 0, size, "all images are of one grade", minimum=-1.0)


def pair_accuracies(table: PredictionTable) -> dict[str, float]:
    """Accuracy of each pair that has images, by metric name, without intervals."""
    if table.pair_logits is None:
        return {}
    correct, counted = (part.sum(axis=0) for part in _correct_and_counted(table.labeled))
    rows = zip(_pair_names(table), correct, counted, strict=True)
    return {name: float(hits / count) for name, hits, count in rows if count}


def _pair_names(table: PredictionTable) -> list[str]:
    """Metric names of the pairs, in the order of the pair logits."""
    names = table.class_names
    return [f"pair/{names[i]}/{names[j]}" for i, j in class_pairs(len(names))]


def _correct_and_counted(table: PredictionTable) -> tuple[np.ndarray, np.ndarray]:
    """Masks (n, P) of rows and pairs: whether the pair is right, and has the label's class."""
    assert table.pair_logits is not None
    first, second = np.array(class_pairs(len(table.class_names))).T
    label = table.labels[:, None]
    counted = (label == first) | (label == second)
    return counted & (np.where(table.pair_logits > 0, first, second) == label), counted


def _pair_accuracies_of_sums(sums: np.ndarray) -> np.ndarray:
    """Accuracies (r, P + 2): each pair's, their mean, and the mean minus the overall accuracy.

    `sums` (r, 2 P + 2) count correct rows and rows of each pair, then correct rows and all rows.
    """
    accuracy = ratio(*np.split(sums[:, :-2], 2, axis=1))
    mean = accuracy.mean(axis=1, keepdims=True)
    return np.concatenate([accuracy, mean, mean - sums[:, -2:-1] / sums[:, -1:]], axis=1)
