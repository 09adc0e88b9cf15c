"""Figures that are functions of sums over patients, with their intervals."""

import numpy as np

from evaluation.metrics import confusion
from evaluation.predictions import PredictionTable
from evaluation.stats import summary
from evaluation.stats.clusters import Clusters
from evaluation.stats.estimate import Estimate, Parts, Replicates, bootstrap, make_estimate, wilson
from evaluation.stats.small_samples import ALIKE, BOOTSTRAP, WILSON, added, moved, with_room

CENTRED = "patient bootstrap, centerd"
NOTHING = "a class has no image, or is never predicted"
LEAST = {"kappa": -1.0, "kappa_quadratic": -1.0, "mcc": -1.0}  # 0 for all others
Room = tuple[np.ndarray, np.ndarray]


def summed_figures(
    table: PredictionTable, clusters: Clusters, draws: int, seed: int
) -> dict[str, Estimate]:
    """Figures by name; a rate of one class has n and patients of what it is a share of."""
    names, sums = table.class_names, clusters.total(summary.columns(table))
    within = bootstrap(sums, lambda s: _stacked(s, names), clusters, draws, seed)
    among = within
    if clusters.strata:
        among = bootstrap(sums, lambda s: _stacked(s, names), clusters.whole, draws, seed)
    total = np.ones((1, clusters.count)) @ sums
    room, sizes, found = _room(total, table, clusters), _sizes(table, clusters), {}
    for at, name in enumerate(_named(total, names)):
        if name in summary.BY_IMAGE:
            parts, method = _by_image(name, among, at, clusters.count)
        else:
            fall, rise = float(room[0][at]), float(room[1][at])
            parts, method = with_room(within, at, fall, rise, LEAST.get(name, 0.0))
        size = sizes.get(name, (len(table), clusters.count))
        found[name] = make_estimate(
            parts, method, *size, ALIKE if np.isfinite(parts[0]) else NOTHING
        )
    return found | (_proportions(table) if clusters.single else {})


def _by_image(name: str, redrawn: Replicates, at: int, patients: int) -> tuple[Parts, str]:
    """Parts and method of a figure in which no class weighs more than its images."""
    value = float(redrawn.value[at])
    if name in summary.CENTRED:
        low, high = redrawn.centerd(at)
        return (value, float(np.maximum(0.0, low)), high), CENTRED
    if name in summary.SHARES and value in (0.0, 1.0):
        return (value, *wilson(value * patients, patients)), WILSON
    return (value, *redrawn.interval(at)), BOOTSTRAP


def _room(total: np.ndarray, table: PredictionTable, clusters: Clusters) -> Room:
    """How far each figure may fall and rise for classes that redraws cannot show."""
    k = len(table.class_names)
    held = clusters.holding(np.eye(k, dtype=bool)[table.labels])
    cells = moved(summary.matrices(total, k)[0], held).reshape(-1, k * k)
    rest = np.repeat(total[:, k * k :], len(cells), axis=0)
    values = _stacked(np.hstack([cells, rest]), table.class_names)
    return added(values - values[:1])


def _named(sums: np.ndarray, class_names: list[str]) -> confusion.Rates:
    return summary.overall(sums, len(class_names)) | summary.per_class(sums, class_names)


def _stacked(sums: np.ndarray, class_names: list[str]) -> np.ndarray:
    return np.column_stack(list(_named(sums, class_names).values()))


def _sizes(table: PredictionTable, clusters: Clusters) -> dict[str, tuple[int, int]]:
    """Images and patients that the rates of a class are shares of."""
    corner = np.eye(len(table.class_names), dtype=bool)
    own, said = corner[table.labels], corner[table.logits.argmax(axis=1)]
    return {
        f"{rate}/{name}": (int(images), int(patients))
        for rate, rows in (("recall", own), ("precision", said), ("specificity", ~own))
        for name, images, patients in zip(
            table.class_names, rows.sum(axis=0), clusters.holding(rows), strict=True
        )
    }


def _proportions(table: PredictionTable) -> dict[str, Estimate]:
    """Wilson's interval where each patient has one image."""
    matrix = confusion.confusion(table.labels, table.logits.argmax(axis=1), len(table.class_names))
    hits, total = np.diagonal(matrix), matrix.sum()
    found = {name: _wilson(int(hits.sum()), int(total)) for name in summary.SHARES}
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


def _wilson(hits: int, n: int) -> Estimate:
    if n == 0:
        return Estimate(None, None, None, "Wilson", 0, 0, "there is nothing to divide by")
    return Estimate(hits / n, *wilson(hits, n), "Wilson", n, n)
