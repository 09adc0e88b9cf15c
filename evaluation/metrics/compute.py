"""All metrics of a prediction table with intervals, and the few computed at each epoch."""

import numpy as np

from evaluation.metrics import confusion
from evaluation.metrics.ranking import ranking_estimates
from evaluation.metrics.registry import METRICS
from evaluation.metrics.sums import KINDS, sum_estimates
from evaluation.predictions import PredictionTable
from evaluation.stats.auc import one_vs_rest
from evaluation.stats.bootstrap import DRAWS, Clusters
from evaluation.stats.estimate import Estimate, Estimates


def compute_metrics(table: PredictionTable, draws: int = DRAWS, seed: int = 0) -> Estimates:
    """Every metric of the registry on the labeled rows, by full name (`recall/<class>`)."""
    if (table.labels < 0).all():
        return {"accuracy": Estimate(None, None, None, "none", 0, 0, "no row has a known label")}
    labeled = table.labeled
    clusters = Clusters.from_patients(labeled.patients, labeled.labels)
    specs = list(METRICS.values())
    rankings = {s.name: (s.compute, s.perfect_bound) for s in specs if s.kind == "ranking"}
    summed = [spec for spec in specs if spec.kind in KINDS]
    estimates = sum_estimates(labeled, clusters, summed, draws, seed)
    estimates |= ranking_estimates(labeled, clusters, rankings, draws, seed)
    for compute in dict.fromkeys(spec.compute for spec in specs if spec.kind == "estimates"):
        estimates |= compute(labeled, clusters, draws, seed)
    position = {name: at for at, name in enumerate(METRICS)}
    return dict(sorted(estimates.items(), key=lambda item: position[item[0].split("/")[0]]))


def metrics_by_attribute(
    table: PredictionTable, attribute: str, draws: int = DRAWS, seed: int = 0
) -> dict[str, Estimates]:
    """`compute_metrics` of the rows with each value of an attribute, by value."""
    if attribute not in table.attributes:
        raise ValueError(f"attribute {attribute!r} is not among {table.attributes}")
    values = table.rows[attribute].astype(str).to_numpy(dtype=object)
    return {
        str(value): compute_metrics(table.take(np.flatnonzero(values == value)), draws, seed)
        for value in np.unique(values.astype(str))
    }


def epoch_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro AUROC without intervals; NaN if a class is absent."""
    predictions, num_classes = probabilities.argmax(axis=1), probabilities.shape[1]
    matrix = confusion.confusion_matrix(labels, predictions, num_classes)
    return {
        "accuracy": float(confusion.accuracy(matrix)),
        "balanced_accuracy": float(confusion.recall(matrix).mean()),
        "auroc": float(one_vs_rest(probabilities, labels).mean()),
    }


def recall_and_precision(table: PredictionTable) -> dict[str, float]:
    """`recall/<class>` and `precision/<class>` without intervals, where they are defined."""
    matrix = confusion_matrix(table)
    rates = {"recall": confusion.recall(matrix), "precision": confusion.precision(matrix)}
    return {
        f"{rate}/{name}": float(value)
        for rate, values in rates.items()
        for name, value in zip(table.class_names, values, strict=True)
        if np.isfinite(value)
    }


def confusion_matrix(table: PredictionTable) -> np.ndarray:
    """Counts (K, K) of the labeled rows: rows are labels, columns are predictions."""
    labeled = table.labeled
    num_classes = len(table.class_names)
    return confusion.confusion_matrix(labeled.labels, labeled.predictions, num_classes)
