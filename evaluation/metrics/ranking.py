"""Figures of a ranking that no sum gives: average precision, sensitivity at a specificity."""

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix, hstack

from evaluation.predictions import PredictionTable
from evaluation.stats.clusters import Clusters, Sums
from evaluation.stats.estimate import TIE, Estimate, Replicates, bootstrap, make_estimate, wilson
from evaluation.stats.small_samples import ALIKE, FEW, few, with_room

ABSENT = "a class has no image, or it has them all"

SPECIFICITY = 0.95
NAMES = ("average_precision", f"sensitivity_at_specificity_{SPECIFICITY:g}")
_BLOCKS = 1024  # above so many distinct scores, redraws see them in blocks of equal count


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean precision over the positives, ties taken together; NaN without both kinds."""
    return float(_ranked(_exact(scores, positive))[0, 0])


def sensitivity_at(
    scores: np.ndarray, positive: np.ndarray, specificity: float = SPECIFICITY
) -> float:
    """The largest sensitivity at which the specificity is at least so high."""
    return float(_ranked(_exact(scores, positive), specificity)[0, 1])


def ranked_figures(
    table: PredictionTable, clusters: Clusters, draws: int, seed: int
) -> dict[str, Estimate]:
    """Both figures of each class and their means over classes, by name.

    Where there are many distinct scores the redraws rank blocks of them, and what the blocks
    cost the figure itself is added back.
    """
    names, scores = table.class_names, table.probabilities.T
    positive = (table.labels[:, None] == np.arange(len(names))).T
    blocks = [_blocked(*each) for each in zip(scores, positive, strict=True)]
    values = np.array([_ranked(_exact(*each))[0] for each in zip(scores, positive, strict=True)])
    ends = np.cumsum([b.shape[1] for b in blocks])[:-1]
    redrawn = bootstrap(
        clusters.total(hstack(blocks).tocsr()), lambda s: _means(s, ends), clusters, draws, seed
    )
    held = np.column_stack([clusters.holding(rows.T) for rows in (positive, ~positive)])
    falls = _falls(values, positive.mean(axis=1), held)
    found, size = {}, (len(table), clusters.count)
    for column, name in enumerate(NAMES):
        over = (values[:, column].mean(), np.linalg.norm(falls[:, column]) / len(names))
        each = [over, *zip(values[:, column], falls[:, column], strict=True)]
        reasons = _few(names, held, values[:, column])
        for row, end in enumerate(("", *(f"/{c}" for c in names))):
            found[name + end] = _figure(redrawn, 2 * row + column, *each[row], reasons[row], size)
    return found


def _figure(
    redrawn: Replicates, at: int, value: float, fall: float, reason: str, size: tuple[int, int]
) -> Estimate:
    shift = value - float(redrawn.value[at])
    parts, method = with_room(redrawn, at, fall, 0.0, shift=shift)
    if reason:
        parts = (value, np.nan, np.nan)
    return make_estimate(parts, method, *size, reason or (ALIKE if np.isfinite(value) else ABSENT))


def _few(names: Sequence[str], held: np.ndarray, values: np.ndarray) -> list[str]:
    """Why the mean over classes and each class have no interval; "" where they may have one."""
    known = np.where(values == 1, FEW, held.T)  # how far a perfect class falls is known
    every = zip(names, *known, strict=True)
    each = [few([c], [own]) or few([f"not {c}"], [others]) for c, own, others in every]
    return [few(names, known[0]) or next(filter(None, each), ""), *each]


def _falls(values: np.ndarray, share: np.ndarray, held: np.ndarray) -> np.ndarray:
    """How far below 1 a perfect figure (K, 2) may yet be; 0 for others.

    As if positives were found, and negatives passed over, only as often as Wilson's bound for a
    perfect rate says, each patient counting once.
    """
    found, passed = np.array([[wilson(n, n)[0] if n else 0.0 for n in each] for each in held]).T
    hits, alarms = share * found, (1 - share) * (1 - passed)
    floors = np.column_stack([found * hits / np.maximum(hits + alarms, TIE), found])
    return np.where(values == 1, 1 - floors, 0.0)


def _means(sums: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Both figures, first their mean over classes, then class by class: (r, 2 + 2K)."""
    each = [_ranked(part) for part in np.split(sums, ends, axis=1)]
    return np.hstack([np.mean(each, axis=0), *each])


def _ranked(counts: np.ndarray, specificity: float = SPECIFICITY) -> np.ndarray:
    """Average precision and sensitivity from (r, 2G) counts, highest scores first: (r, 2)."""
    hits, false = np.split(counts, 2, axis=1)
    caught, alarms = hits.cumsum(axis=1), false.cumsum(axis=1)
    m, n = caught[:, -1], alarms[:, -1]
    precision = caught / np.maximum(caught + alarms, 1)
    allowed = alarms <= (1 - specificity) * n[:, None] + 1e-9
    both = [(hits * precision).sum(axis=1), (caught * allowed).max(axis=1)]
    share = np.stack(both, axis=1) / np.maximum(m, 1)[:, None]
    return np.where(((m > 0) & (n > 0))[:, None], share, np.nan)


def _exact(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Counts of positives and of negatives at each distinct score, highest first: (1, 2G)."""
    block = np.unique(-scores, return_inverse=True)[1]
    size = int(block.max()) + 1
    return np.bincount(block + size * ~positive, minlength=2 * size)[None, :].astype(float)


def _blocked(scores: np.ndarray, positive: np.ndarray) -> Sums:
    """Each row's one in its block, (n, 2G) sparse: positives first, highest scores first."""
    n, block = len(scores), np.unique(-scores, return_inverse=True)[1]
    if block.max() >= _BLOCKS:
        edges = np.quantile(block, np.linspace(0, 1, _BLOCKS + 1)[1:-1])
        block = np.unique(np.searchsorted(edges, block), return_inverse=True)[1]
    size = int(block.max()) + 1
    return csr_matrix((np.ones(n), (np.arange(n), block + size * ~positive)), (n, 2 * size))
