"""Figures of a ranking that no sum gives: average precision, sensitivity at a specificity."""

import numpy as np
from scipy.sparse import csr_matrix, hstack

from evaluation.intervals import Clusters, Sums, bootstrap
from evaluation.table import PredictionTable

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
) -> dict[str, tuple[float, float, float]]:
    """Value, low and high of each class and of the mean over classes, by name.

    Where there are many distinct scores the redraws rank blocks of them, and what the blocks
    cost the figure itself is added back.
    """
    scores, classes = table.probabilities, range(len(table.class_names))
    positive = [table.labels == c for c in classes]
    blocks = [_blocked(scores[:, c], positive[c]) for c in classes]
    exact = [_ranked(_exact(scores[:, c], positive[c]))[0] for c in classes]
    ends = np.cumsum([b.shape[1] for b in blocks])[:-1]
    redrawn = bootstrap(
        clusters.total(hstack(blocks).tocsr()), lambda s: _means(s, ends), clusters, draws, seed
    )
    values = np.concatenate([np.mean(exact, axis=0), *exact])
    keys = [f"{n}{end}" for end in ("", *(f"/{c}" for c in table.class_names)) for n in NAMES]
    found = {}
    for at, key in enumerate(keys):
        shift = values[at] - redrawn.value[at]
        low, high = redrawn.interval(at)
        found[key] = (float(values[at]), max(0.0, low + shift), min(1.0, high + shift))
    return found


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
