"""From one-versus-one logits to class probabilities, and what the pairs are worth by themselves."""

from itertools import combinations

import numpy as np
import torch
from torch import Tensor

from evaluation.predictions import PredictionTable
from evaluation.stats.clusters import Clusters
from evaluation.stats.estimate import DRAWS, Estimate, bootstrap, make_estimate
from evaluation.stats.means import mean
from evaluation.stats.small_samples import ALIKE, BOOTSTRAP, with_room

SURE = 1e-9  # a pair is never surer than this: the coupling's equations stay solvable


def pairs(classes: int) -> list[tuple[int, int]]:
    """The pairs of classes in the order of their logits: (0, 1), (0, 2), ..., (1, 2), ..."""
    return list(combinations(range(classes), 2))


def couple(pair_logits: Tensor, classes: int) -> Tensor:
    """Class probabilities (n, K) in double precision from pair logits (n, K(K-1)/2).

    A pair's logit is that of its first class against its second. The probabilities minimize
    ``sum_ij (r_ji p_i - r_ij p_j)^2`` and sum to 1 (Wu, Lin and Weng 2004, their second method);
    where the pairs agree with some p, ``r_ij = p_i / (p_i + p_j)``, they are that p.
    """
    r = _shares(pair_logits.double(), classes)
    q: Tensor = torch.diag_embed(r.square().sum(dim=1)) - r.transpose(1, 2) * r
    edge = torch.ones_like(q[:, :, :1])
    corner = torch.zeros_like(q[:, :1, :1])
    system = torch.cat(
        [torch.cat([q, edge], dim=2), torch.cat([edge.transpose(1, 2), corner], dim=2)], dim=1
    )
    right = torch.zeros_like(system[:, :, 0])
    right[:, -1] = 1
    solved: Tensor = torch.linalg.solve(system, right)[:, :classes].clamp_min(0)
    return solved / solved.sum(dim=1, keepdim=True)


def figures(table: PredictionTable, draws: int = DRAWS, seed: int = 0) -> dict[str, Estimate]:
    """Accuracy of each pair on the images of its two classes, their mean, and the gap.

    The gap is the pairs' mean accuracy minus the accuracy of the coupled probabilities. A table
    without pair logits gives nothing.
    """
    if table.pairs is None or (table.labels < 0).all():
        return {}
    known = table.labeled
    hits, asked = _answers(known)
    names, who = pair_names(known.class_names), known.patients
    found = {
        name: mean(who[of_pair], right[of_pair], "neither class has an image", draws, seed)
        for name, right, of_pair in zip(names, hits.T, asked.T, strict=True)
    }
    return found | _over_pairs(known, hits, asked, list(found.values()), draws, seed)


def _over_pairs(
    table: PredictionTable, hits: np.ndarray, asked: np.ndarray, each: list[Estimate],
    draws: int, seed: int,
) -> dict[str, Estimate]:  # fmt: skip
    """The pairs' mean and the gap; a pair that is always right, or never, has Wilson's room."""
    clusters = Clusters.make(table.patients, table.labels).whole
    right = (table.logits.argmax(axis=1) == table.labels)[:, None]
    sums = clusters.total(np.concatenate([hits, asked, right, np.ones_like(right)], axis=1))
    redrawn, at = bootstrap(sums, _accuracies, clusters, draws, seed), len(each)
    ends = [(f.value - f.low, f.high - f.value) for f in each
            if f.value in (0, 1) and f.low is not None and f.high is not None]  # fmt: skip
    fall, rise = np.linalg.norm(np.reshape(ends, (-1, 2)), axis=0) / len(each)
    size = (len(table), clusters.count)
    reason = ALIKE if np.isfinite(redrawn.value[at]) else "a pair has no image"
    parts, method = with_room(redrawn, at, float(fall), float(rise))
    gap = (float(redrawn.value[at + 1]), *redrawn.interval(at + 1))
    return {
        "pairs": make_estimate(parts, method, *size, reason),
        "pairs_gap": make_estimate(gap, BOOTSTRAP, *size, reason),
    }


def accuracies(table: PredictionTable) -> dict[str, float]:
    """Accuracy of each pair that has images, as in `figures`, without intervals."""
    if table.pairs is None:
        return {}
    hits, asked = (part.sum(axis=0) for part in _answers(table.labeled))
    found = zip(pair_names(table.class_names), hits, asked, strict=True)
    return {name: float(hit / count) for name, hit, count in found if count}


def pair_names(class_names: list[str]) -> list[str]:
    """The names of the pairs' figures, in the order of the pair logits."""
    return [f"pair/{class_names[i]}/{class_names[j]}" for i, j in pairs(len(class_names))]


def _shares(pair_logits: Tensor, classes: int) -> Tensor:
    """Matrices r (n, K, K): r[:, i, j] is the probability of i against j, r[:, i, i] is 0."""
    first, second = zip(*pairs(classes), strict=True)
    if pair_logits.ndim != 2 or pair_logits.shape[1] != len(first):
        shape = tuple(pair_logits.shape)
        raise ValueError(
            f"pair_logits have shape {shape}, not (n, {len(first)}): {classes} classes"
        )
    of_first = torch.sigmoid(pair_logits).clamp(SURE, 1 - SURE)
    r = pair_logits.new_zeros(len(pair_logits), classes, classes)
    r[:, first, second] = of_first
    r[:, second, first] = 1 - of_first
    return r


def _answers(table: PredictionTable) -> tuple[np.ndarray, np.ndarray]:
    """Of each row and pair (n, P): whether the pair was right, and whether it was asked."""
    assert table.pairs is not None
    first, second = np.array(pairs(len(table.class_names))).T
    label = table.labels[:, None]
    asked = (label == first) | (label == second)
    hits = asked & (np.where(table.pairs > 0, first, second) == label)
    return hits, asked


def _accuracies(sums: np.ndarray) -> np.ndarray:
    """Summed (hits, asked, coupled hits, rows) of r draws -> (r, P + 2)."""
    count = sums.shape[1] // 2 - 1
    hits, asked = sums[:, :count], sums[:, count : 2 * count]
    with np.errstate(invalid="ignore"):
        each = np.where(asked > 0, hits / asked, np.nan)
    mean = each.mean(axis=1, keepdims=True)
    return np.concatenate([each, mean, mean - sums[:, -2:-1] / sums[:, -1:]], axis=1)
