"""Metrics of a ranking of images: AUROC, average precision, sensitivity at a specificity."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from scipy.sparse import hstack

from evaluation.metrics.clinical import Outcomes
from evaluation.predictions import PredictionTable
from evaluation.stats import bootstrap
from evaluation.stats.auc import delong
from evaluation.stats.bootstrap import Clusters, Sums, too_few_patients
from evaluation.stats.estimate import Estimates, make_estimate, replicate_estimate, wilson_interval

ABSENT = "a class has no image, or all images"
_MAX_RANKS = 1024  # with more distinct scores, neighboring ones share a rank in resamples

# cumulative true and false positives (r, G), highest score first -> (r,)
RankingFunction = Callable[[np.ndarray, np.ndarray], np.ndarray]
# sensitivity, false positive rate, prevalence (K,) each -> lower bound of a perfect value (K,)
PerfectBound = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def average_precision_of_counts(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """Mean precision over the positives, (r,), from cumulative counts (r, G)."""
    precision, steps = tp / np.maximum(tp + fp, 1), np.diff(tp, axis=1, prepend=0)
    return np.asarray((steps * precision).sum(axis=1) / np.maximum(tp[:, -1], 1))


def auroc_of_counts(tp: np.ndarray, fp: np.ndarray) -> np.ndarray:
    """Area under the ROC curve, (r,), from cumulative counts (r, G); ties count half."""
    steps, heights = np.diff(fp, axis=1, prepend=0), tp - np.diff(tp, axis=1, prepend=0) / 2
    return np.asarray((steps * heights).sum(axis=1) / np.maximum(tp[:, -1] * fp[:, -1], 1))


def sensitivity_of_counts(tp: np.ndarray, fp: np.ndarray, specificity: float = 0.95) -> np.ndarray:
    """Largest sensitivity (r,) at a specificity of at least `specificity`, from counts (r, G)."""
    allowed = fp <= (1 - specificity) * fp[:, -1:] + 1e-9
    return np.asarray((tp * allowed).max(axis=1) / np.maximum(tp[:, -1], 1))


def average_precision_bound(
    sensitivity: np.ndarray, false_positive_rate: np.ndarray, prevalence: np.ndarray
) -> np.ndarray:
    """Average precision (K,) of a classifier with one threshold that has these rates (K,)."""
    hits, false_alarms = prevalence * sensitivity, (1 - prevalence) * false_positive_rate
    return np.asarray(sensitivity * hits / np.maximum(hits + false_alarms, bootstrap.TIE))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Mean precision over the positives, ties taken together; NaN if all or none is positive."""
    return ranking_value(average_precision_of_counts, scores, positive)


def auroc_estimates(table: PredictionTable, clusters: Clusters, draws: int, seed: int) -> Estimates:
    """AUROC of each class or group against the others, mean over classes, DeLong's intervals."""
    delongs = "DeLong" if clusters.has_one_row_per_patient else "cluster-robust DeLong"
    outcomes, size = Outcomes.from_table(table), (len(table), clusters.num_patients, ABSENT)
    areas = delong(outcomes.probabilities, outcomes.positive, clusters)
    columns = np.arange(len(outcomes.names))
    parts = {"auroc": columns[: len(table.class_names)]}
    parts |= {f"auroc/{name}": columns[[at]] for at, name in enumerate(outcomes.names)}
    estimates = {}
    for name, at in parts.items():
        constant = areas.is_constant(at)
        methods = [delongs] * (not constant.all()) + ["Newcombe"] * bool(constant.any())
        estimates[name] = make_estimate(areas.mean(at), " and ".join(methods), *size)
    return estimates


def ranking_estimates(
    table: PredictionTable, clusters: Clusters,
    functions: Mapping[str, tuple[RankingFunction, PerfectBound | None]], draws: int, seed: int,
) -> Estimates:  # fmt: skip
    """Estimates of each function: `name/<class>` for each class, `name` for the mean."""
    k, names, positive = len(table.class_names), table.class_names, table.one_hot_labels
    of_class = list(zip(table.probabilities.T, positive.T, strict=True))
    ranks = [rank_columns(*pair) for pair in of_class]
    ends = np.cumsum([b.shape[1] for b in ranks])[:-1]
    compute = [function for function, _ in functions.values()]

    def means_and_values(sums: np.ndarray) -> np.ndarray:
        """Means over classes, then values of each class, (r, F + F K)."""
        values = [values_of_counts(part, compute) for part in np.split(sums, ends, axis=1)]
        return np.hstack([np.mean(values, axis=0), *values])

    sums = clusters.sum_by_patient(hstack(ranks).tocsr())
    replicates = bootstrap.bootstrap(sums, means_and_values, clusters, draws, seed)
    patients = np.column_stack([clusters.patients_with(mask) for mask in (positive, ~positive)])
    estimates, size = {}, (len(table), clusters.num_patients)
    for first, (name, (function, bound)) in enumerate(functions.items()):
        values = np.array([ranking_value(function, *pair) for pair in of_class])
        falls = _possible_falls(values, positive.mean(axis=0), patients, bound)
        rows = zip(
            [name, *(f"{name}/{c}" for c in names)],
            range(first, replicates.value.size, len(functions)),
            [values.mean(), *values],
            [np.linalg.norm(falls) / k, *falls],
            _reasons_without_interval(names, patients, values),
            strict=True,
        )
        for full_name, at, value, fall, reason in rows:
            shift = value - float(replicates.value[at])  # not 0 if scores share ranks
            estimate = replicate_estimate(replicates, at, size, ABSENT, fall, shift=shift)
            if reason:
                estimate = make_estimate((value, np.nan, np.nan), estimate.method, *size, reason)
            estimates[full_name] = estimate
    return estimates


def _reasons_without_interval(
    class_names: Sequence[str], patients: np.ndarray, values: np.ndarray
) -> list[str]:
    """Why the mean over classes and each class have no interval; "" where they have one."""
    # a perfect class has Wilson's bound
    counted = np.where(values == 1, bootstrap.MIN_PATIENTS, patients.T)
    of_class = [
        too_few_patients([name], [own]) or too_few_patients([f"not {name}"], [others])
        for name, own, others in zip(class_names, *counted, strict=True)
    ]
    of_mean = too_few_patients(class_names, counted[0]) or next(filter(None, of_class), "")
    return [of_mean, *of_class]


def _possible_falls(
    values: np.ndarray, prevalence: np.ndarray, patients: np.ndarray, bound: PerfectBound | None
) -> np.ndarray:
    """How far below 1 the true value may be for each class with value 1, (K,); 0 for others."""
    if bound is None:
        return np.zeros(len(values))
    lower = [wilson_interval(n, n)[0] if n else 0.0 for n in patients.ravel()]  # patients (K, 2)
    sensitivity, specificity = np.reshape(lower, (-1, 2)).T
    return np.where(values == 1, 1 - bound(sensitivity, 1 - specificity, prevalence), 0.0)


def values_of_counts(counts: np.ndarray, functions: Sequence[RankingFunction]) -> np.ndarray:
    """Values (r, F) of the functions for counts by rank (r, 2 G) as of `rank_columns`."""
    positives, negatives = np.split(counts, 2, axis=1)
    cumulative = positives.cumsum(axis=1), negatives.cumsum(axis=1)
    has_both = (cumulative[0][:, -1] > 0) & (cumulative[1][:, -1] > 0)
    values = np.stack([function(*cumulative) for function in functions], axis=1)
    return np.where(has_both[:, None], values, np.nan)


def ranking_value(function: RankingFunction, scores: np.ndarray, positive: np.ndarray) -> float:
    """The value of a function for scores (n,) with ties; NaN without positives or negatives."""
    rank = np.unique(-scores, return_inverse=True)[1]
    size = int(rank.max()) + 1
    counts = np.bincount(rank + size * ~positive, minlength=2 * size)[None].astype(float)
    return float(values_of_counts(counts, [function])[0, 0])


def rank_columns(scores: np.ndarray, positive: np.ndarray) -> Sums:
    """One-hot rank among G scores, highest first, (n, 2 G), sparse: positives, then negatives."""
    rank = np.unique(-scores, return_inverse=True)[1]
    if rank.max() >= _MAX_RANKS:
        edges = np.quantile(rank, np.linspace(0, 1, _MAX_RANKS + 1)[1:-1])
        rank = np.unique(np.searchsorted(edges, rank), return_inverse=True)[1]
    size = int(rank.max()) + 1
    return bootstrap.one_hot(rank + size * ~positive, 2 * size)
