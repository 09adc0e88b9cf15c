"""Every figure of a prediction table, with its interval; and the few needed at each epoch."""

import numpy as np

from evaluation import rates, summary
from evaluation.auc import areas, one_vs_rest
from evaluation.intervals import DRAWS, Clusters, Figure, bootstrap, figure, wilson
from evaluation.ranked import ranked_figures
from evaluation.summary import nll
from evaluation.table import PredictionTable

__all__ = ["Figure", "Figures", "by_attribute", "by_class", "confusion", "figures", "nll", "quick"]

Figures = dict[str, Figure]
BOOTSTRAP, CENTRED = "patient bootstrap, BCa", "patient bootstrap, centred"


def quick(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
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
    """Counts (K, K) of the labelled rows: rows are labels, columns are predictions."""
    known = table.labelled
    return rates.confusion(known.labels, known.logits.argmax(axis=1), len(table.class_names))


def figures(table: PredictionTable, draws: int = DRAWS, seed: int = 0) -> Figures:
    """Figures of the labelled rows by name; those of one class are named `recall/<class>`."""
    if (table.labels < 0).all():
        return {"accuracy": Figure(None, None, None, "none", 0, 0, "no row has a known label")}
    known = table.labelled
    clusters = Clusters.make(known.patients, known.labels)
    found = _summed(known, clusters, draws, seed) | _areas(known, clusters)
    ranked = ranked_figures(known, clusters, draws, seed)
    size = (BOOTSTRAP, len(known), clusters.count, "a class has no image, or it has them all")
    return found | {name: figure(parts, *size) for name, parts in ranked.items()}


def by_attribute(
    table: PredictionTable, attribute: str, draws: int = DRAWS, seed: int = 0
) -> dict[str, Figures]:
    """`figures` of the rows of each value of an attribute, by value."""
    if attribute not in table.attributes:
        raise ValueError(f"attribute {attribute!r} is not among {table.attributes}")
    value = table.rows[attribute].astype(str).to_numpy(dtype=object)
    return {
        str(part): figures(table.take(np.flatnonzero(value == part)), draws, seed)
        for part in np.unique(value.astype(str))
    }


def _summed(table: PredictionTable, clusters: Clusters, draws: int, seed: int) -> Figures:
    """Figures that are functions of sums over patients."""
    sums = clusters.total(summary.columns(table))
    total = np.ones((1, clusters.count)) @ sums
    names = list(_named(total, table.class_names))
    redrawn = bootstrap(sums, lambda s: _stacked(s, table.class_names), clusters, draws, seed)
    floors = _named(_pessimistic(total, table, clusters), table.class_names)
    size = (len(table), clusters.count)
    found = {}
    for at, name in enumerate(names):
        value = float(redrawn.value[at])
        parts, method = (value, *redrawn.interval(at)), BOOTSTRAP
        if name in summary.CENTRED:
            low, high = redrawn.centred(at)
            parts, method = (value, max(0.0, low), high), CENTRED
        elif np.isnan(parts[1]) and value == 1:
            parts, method = (1.0, float(floors[name][0]), 1.0), "Wilson, by patients"
        found[name] = figure(parts, method, *size, "redraws lack it or are all the same")
    return found | (_proportions(table) if clusters.single else {})


def _named(sums: np.ndarray, class_names: list[str]) -> rates.Rates:
    return summary.overall(sums, len(class_names)) | summary.per_class(sums, class_names)


def _stacked(sums: np.ndarray, class_names: list[str]) -> np.ndarray:
    return np.column_stack(list(_named(sums, class_names).values()))


def _pessimistic(total: np.ndarray, table: PredictionTable, clusters: Clusters) -> np.ndarray:
    """The sums if each class were right only as often as Wilson's bound for a perfect rate.

    A rate of 1 has no spread to redraw; this says how far below 1 it may yet be. Errors are
    spread evenly over the other classes; a class counts as many trials as it has patients.
    """
    k = len(table.class_names)
    held = (clusters.total(np.eye(k)[table.labels]) > 0).sum(axis=0)
    low = np.array([wilson(n, n)[0] if n else 0.0 for n in held])[:, None]
    matrix = summary.matrices(total, k)[0]
    others = (1 - np.eye(k)) / (k - 1) * matrix.sum(axis=1, keepdims=True)
    mixed = low * matrix + (1 - low) * others
    return np.column_stack([mixed.reshape(1, -1), total[:, k * k :]])


def _proportions(table: PredictionTable) -> Figures:
    """Wilson's interval where each patient has one image."""
    matrix = confusion(table)
    hits, total = np.diagonal(matrix), matrix.sum()
    found = {"accuracy": _wilson(int(hits.sum()), int(total))}
    others = total - matrix.sum(axis=1)
    counts = {
        "recall": (hits, matrix.sum(axis=1)),
        "precision": (hits, matrix.sum(axis=0)),
        "specificity": (others - matrix.sum(axis=0) + hits, others),
    }
    for rate, (top, bottom) in counts.items():
        for name, a, b in zip(table.class_names, top, bottom, strict=True):
            found[f"{rate}/{name}"] = _wilson(int(a), int(b))
    return found


def _wilson(hits: int, n: int) -> Figure:
    if n == 0:
        return Figure(None, None, None, "Wilson", 0, 0, "there is nothing to divide by")
    return Figure(hits / n, *wilson(hits, n), "Wilson", n, n)


def _areas(table: PredictionTable, clusters: Clusters) -> Figures:
    k, method = len(table.class_names), "DeLong" if clusters.single else "cluster-robust DeLong"
    positive = table.labels[:, None] == np.arange(k)
    found = areas(table.probabilities, positive, clusters)
    groups = {"auroc": np.arange(k)}
    groups |= {f"auroc/{name}": np.array([c]) for c, name in enumerate(table.class_names)}
    size = (method, len(table), clusters.count, "a class has no image, or it has them all")
    return {name: figure(found.mean(at), *size) for name, at in groups.items()}
