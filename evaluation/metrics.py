"""Every figure of a prediction table, with its interval; and the few needed at each epoch."""

from collections.abc import Callable

import numpy as np

from evaluation import rates
from evaluation.auc import areas, one_vs_rest
from evaluation.intervals import DRAWS, Clusters, Figure, Replicates, bootstrap, wilson
from evaluation.table import PredictionTable

__all__ = ["Figure", "confusion", "figures", "nll", "quick"]

Figures = dict[str, Figure]
_PROPORTIONS = ("recall", "precision", "specificity")


def quick(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy, balanced accuracy and macro AUC without intervals; NaN when a class is absent."""
    matrix = rates.confusion(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    return {
        "accuracy": float(rates.accuracy(matrix)),
        "balanced_accuracy": float(rates.recall(matrix).mean()),
        "auroc": float(one_vs_rest(probabilities, labels).mean()),
    }


def confusion(table: PredictionTable) -> np.ndarray:
    """Counts (K, K) of the labelled rows: rows are labels, columns are predictions."""
    known = table.labelled
    return rates.confusion(known.labels, known.logits.argmax(axis=1), len(table.class_names))


def nll(table: PredictionTable) -> np.ndarray:
    """Negative log-likelihood of each row's label, in nats, (n,)."""
    return np.asarray(-table.log_probabilities[np.arange(len(table)), table.labels])


def brier(table: PredictionTable) -> np.ndarray:
    """Squared distance of the probabilities from the label's corner, (n,), between 0 and 2."""
    corner = np.eye(len(table.class_names))[table.labels]
    return np.asarray(((table.probabilities - corner) ** 2).sum(axis=1))


def figures(table: PredictionTable, draws: int = DRAWS, seed: int = 0) -> Figures:
    """Figures of the labelled rows by name; those of one class are named `recall/<class>`."""
    if (table.labels < 0).all():
        return {"accuracy": Figure(None, None, None, "none", 0, 0, "no row has a known label")}
    known = table.labelled
    clusters = Clusters.make(known.patients, known.labels)
    return _summed(known, clusters, draws, seed) | _areas(known, clusters)


def _summed(table: PredictionTable, clusters: Clusters, draws: int, seed: int) -> Figures:
    """Figures that are functions of sums over patients."""
    sums = clusters.total(_columns(table))
    name_all = _named(table.class_names)
    names = list(name_all(sums.sum(axis=0, keepdims=True)))
    replicates = bootstrap(
        sums, lambda s: np.column_stack([*name_all(s).values()]), clusters, draws, seed
    )
    found = {n: _redrawn(replicates, at, table, clusters) for at, n in enumerate(names)}
    return found | (_proportions(table) if clusters.single else {})


def _columns(table: PredictionTable) -> np.ndarray:
    k = len(table.class_names)
    cell = table.labels * k + table.logits.argmax(axis=1)
    return np.column_stack([np.eye(k * k)[cell], nll(table), brier(table)])


def _named(class_names: list[str]) -> Callable[[np.ndarray], rates.Rates]:
    """Summed columns (r, d) -> every figure by name, (r,) each."""
    k = len(class_names)

    def statistic(sums: np.ndarray) -> rates.Rates:
        matrix = sums[:, : k * k].reshape(-1, k, k)
        n = matrix.sum(axis=(1, 2))
        each = {
            f"{rate}/{name}": values[:, c]
            for rate, values in rates.per_class(matrix).items()
            for c, name in enumerate(class_names)
        }
        means = {"nll": sums[:, k * k] / n, "brier": sums[:, k * k + 1] / n}
        return rates.overall(matrix) | means | each

    return statistic


def _redrawn(replicates: Replicates, at: int, table: PredictionTable, clusters: Clusters) -> Figure:
    value = float(replicates.value[at])
    low, high = replicates.interval(at)
    reason = "" if np.isfinite(low) else "too few redraws in which this is defined"
    return figure(value, low, high, "patient bootstrap, BCa", len(table), clusters.count, reason)


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
        return Figure(None, None, None, "Wilson", 0, 0, "nothing to divide by")
    return Figure(hits / n, *wilson(hits, n), "Wilson", n, n)


def _areas(table: PredictionTable, clusters: Clusters) -> Figures:
    k, method = len(table.class_names), "DeLong" if clusters.single else "cluster-robust DeLong"
    positive = table.labels[:, None] == np.arange(k)
    found = areas(table.probabilities, positive, clusters)
    groups = {"auroc": np.arange(k)}
    groups |= {f"auroc/{name}": np.array([c]) for c, name in enumerate(table.class_names)}
    reason = "a class has no image, or there is no other class"
    return {
        name: figure(*found.mean(at), method, len(table), clusters.count, reason)
        for name, at in groups.items()
    }


def figure(
    value: float, low: float, high: float, method: str, n: int, patients: int, reason: str
) -> Figure:
    """A Figure whose NaN parts are None; `reason` is kept only where something is None."""
    parts = [float(x) if np.isfinite(x) else None for x in (value, low, high)]
    said = reason if None in parts else ""
    return Figure(parts[0], parts[1], parts[2], method, n, patients, said)
