"""Accuracy of one-versus-one pairs of classes, from pair logits in a prediction table."""

from itertools import combinations

import numpy as np

from evaluation.predictions import PredictionTable
from evaluation.stats.bootstrap import (
    BCA,
    NO_SPREAD,
    Clusters,
    bootstrap,
    interval_with_wilson_bound,
)
from evaluation.stats.estimate import Estimate, make_estimate, mean_estimate


def class_pairs(num_classes: int) -> list[tuple[int, int]]:
    """The pairs of classes in the order of their logits: (0, 1), (0, 2), ..., (1, 2), ..."""
    return list(combinations(range(num_classes), 2))


def pair_names(class_names: list[str]) -> list[str]:
    """Metric names of the pairs, in the order of the pair logits."""
    return [f"pair/{class_names[i]}/{class_names[j]}" for i, j in class_pairs(len(class_names))]


def pair_estimates(
    table: PredictionTable, clusters: Clusters, draws: int, seed: int
) -> dict[str, Estimate]:
    """Accuracy of each pair on the images of its two classes, their mean, and the gap.

    `pairs_gap` is the mean accuracy of the pairs minus the accuracy of the coupled probabilities.
    A table without pair logits has none of these metrics.
    """
    if table.pair_logits is None:
        return {}
    correct, counted = _correct_and_counted(table)
    estimates = {
        name: mean_estimate(
            table.patients[rows], is_correct[rows], "neither class has an image", draws, seed
        )
        for name, is_correct, rows in zip(
            pair_names(table.class_names), correct.T, counted.T, strict=True
        )
    }
    return estimates | _mean_and_gap(
        table, clusters.without_strata, correct, counted, list(estimates.values()), draws, seed
    )


def _mean_and_gap(
    table: PredictionTable, clusters: Clusters, correct: np.ndarray, counted: np.ndarray,
    of_pairs: list[Estimate], draws: int, seed: int,
) -> dict[str, Estimate]:  # fmt: skip
    """Mean of the pairs and gap; a pair that is always or never right has Wilson's interval."""
    coupled = (table.predictions == table.labels)[:, None]
    columns = np.concatenate([correct, counted, coupled, np.ones_like(coupled)], axis=1)
    sums, at = clusters.sum_by_patient(columns), len(of_pairs)
    replicates = bootstrap(sums, _accuracies, clusters, draws, seed)
    distances = [
        (e.value - e.low, e.high - e.value)
        for e in of_pairs
        if e.value in (0, 1) and e.low is not None and e.high is not None
    ]
    fall, rise = np.linalg.norm(np.reshape(distances, (-1, 2)), axis=0) / len(of_pairs)
    size = (len(table), clusters.num_patients)
    reason = NO_SPREAD if np.isfinite(replicates.value[at]) else "a pair has no image"
    parts, method = interval_with_wilson_bound(replicates, at, float(fall), float(rise))
    gap = (float(replicates.value[at + 1]), *replicates.bca_interval(at + 1))
    return {
        "pairs": make_estimate(parts, method, *size, reason),
        "pairs_gap": make_estimate(gap, BCA, *size, reason),
    }


def pair_accuracies(table: PredictionTable) -> dict[str, float]:
    """Accuracy of each pair that has images, by metric name, without intervals."""
    if table.pair_logits is None:
        return {}
    correct, counted = (part.sum(axis=0) for part in _correct_and_counted(table.labeled))
    rows = zip(pair_names(table.class_names), correct, counted, strict=True)
    return {name: float(hits / count) for name, hits, count in rows if count}


def _correct_and_counted(table: PredictionTable) -> tuple[np.ndarray, np.ndarray]:
    """For each row and pair (n, P): is the pair right, and is the label one of its classes."""
    assert table.pair_logits is not None
    first, second = np.array(class_pairs(len(table.class_names))).T
    label = table.labels[:, None]
    counted = (label == first) | (label == second)
    correct = counted & (np.where(table.pair_logits > 0, first, second) == label)
    return correct, counted


def _accuracies(sums: np.ndarray) -> np.ndarray:
    """Sums (r, 2 P + 2) of correct, counted, coupled correct, rows -> accuracies (r, P + 2)."""
    num_pairs = sums.shape[1] // 2 - 1
    correct, counted = sums[:, :num_pairs], sums[:, num_pairs : 2 * num_pairs]
    with np.errstate(invalid="ignore"):
        accuracy = np.where(counted > 0, correct / counted, np.nan)
    mean = accuracy.mean(axis=1, keepdims=True)
    return np.concatenate([accuracy, mean, mean - sums[:, -2:-1] / sums[:, -1:]], axis=1)
