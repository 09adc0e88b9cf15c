"""Every figure of a prediction table, with its interval; and the few needed at each epoch."""

import numpy as np

from evaluation.metrics import confusion as rates
from evaluation.metrics.ranking import ranked_figures
from evaluation.predictions import PredictionTable
from evaluation.stats.auc import areas, one_vs_rest
from evaluation.stats.bootstrap import summed_figures
from evaluation.stats.clusters import Clusters
from evaluation.stats.estimate import DRAWS, Estimate, make_estimate
from evaluation.stats.summary import nll

__all__ = [
    "Estimate",
    "Estimates",
    "by_attribute",
    "by_class",
    "confusion",
    "compute_metrics",
    "nll",
    "epoch_metrics",
]

Estimates = dict[str, Estimate]


def epoch_metrics(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro AUC without intervals; NaN when a class is absent."""
    matrix = rates.confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    return {
        "accuracy": float(rates.accuracy(matrix)),
        "balanced_accuracy": float(rates.recall(matrix).mean()),
        "auroc": float(one_vs_rest(probabilities, labels).mean()),
    }


def by_class(table: PredictionTable) -> dict[str, float]:
    """Recall and precision of each class that has them, named as in `figures`, no intervals."""
    found = rates.per_class(confusion(table))
    named = {
        f"{rate}/{name}": float(value)
        for rate in ("recall", "precision")
        for name, value in zip(table.class_names, found[rate], strict=True)
    }
    return {name: value for name, value in named.items() if np.isfinite(value)}


def confusion(table: PredictionTable) -> np.ndarray:
    """Counts (K, K) of the labeled rows: rows are labels, columns are predictions."""
    known = table.labeled
    return rates.confusion(known.labels, known.logits.argmax(axis=1), len(table.class_names))


def compute_metrics(table: PredictionTable, draws: int = DRAWS, seed: int = 0) -> Estimates:
    """Figures of the labeled rows by name; those of one class are named `recall/<class>`."""
    if (table.labels < 0).all():
        return {"accuracy": Estimate(None, None, None, "none", 0, 0, "no row has a known label")}
    known = table.labeled
    clusters = Clusters.make(known.patients, known.labels)
    return {
        **summed_figures(known, clusters, draws, seed),
        **_areas(known, clusters),
        **ranked_figures(known, clusters, draws, seed),
    }


def by_attribute(
    table: PredictionTable, attribute: str, draws: int = DRAWS, seed: int = 0
) -> dict[str, Estimates]:
    """`figures` of the rows of each value of an attribute, by value."""
    if attribute not in table.attributes:
        raise ValueError(f"attribute {attribute!r} is not among {table.attributes}")
    value = table.rows[attribute].astype(str).to_numpy(dtype=object)
    return {
        str(part): compute_metrics(table.take(np.flatnonzero(value == part)), draws, seed)
        for part in np.unique(value.astype(str))
    }


def _areas(table: PredictionTable, clusters: Clusters) -> Estimates:
    k, method = len(table.class_names), "DeLong" if clusters.single else "cluster-robust DeLong"
    positive = table.labels[:, None] == np.arange(k)
    found = areas(table.probabilities, positive, clusters)
    groups = {"auroc": np.arange(k)}
    groups |= {f"auroc/{name}": np.array([c]) for c, name in enumerate(table.class_names)}
    size = (method, len(table), clusters.count, "a class has no image, or it has them all")
    return {name: make_estimate(found.mean(at), *size) for name, at in groups.items()}
