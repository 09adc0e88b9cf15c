"""Two models on the same images: paired differences, their intervals, tests and corrections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import hstack
from scipy.special import ndtri, stdtrit
from scipy.stats import binomtest

from evaluation.metrics.compute import KINDS, SumColumns
from evaluation.metrics.registry import METRICS, MetricSpec, in_registry_order, metric_spec
from evaluation.predictions import PredictionTable, Tables, align
from evaluation.stats import bootstrap
from evaluation.stats.auc import delong
from evaluation.stats.bootstrap import CONFIDENCE_LEVEL, DRAWS, Clusters, Replicates
from evaluation.stats.estimate import Estimate, make_estimate, wilson_interval

SMALLEST_SHOWN = 5e-5  # smaller differences are printed as 0.0000 and are not called a gain
ABSENT = "a class is absent, or all resamples have the same difference"
PERCENTILES = "paired bootstrap over patients, percentiles"
CENTERED = "paired bootstrap over patients, centered"

Pair = tuple[PredictionTable, PredictionTable]


@dataclass(frozen=True)
class Difference:
    """First minus second, with its interval and the two-sided p-value of no difference."""

    estimate: Estimate
    p_value: float  # not corrected for the number of comparisons, see `holm_corrected`
    test: str


Differences = dict[str, Difference]


def paired_differences(
    first: PredictionTable, second: PredictionTable, draws: int = DRAWS, seed: int = 0
) -> Differences:
    """First minus second for each metric that the registry marks as paired, by name."""
    return differences_to_baseline({"": first}, second, draws, seed)[""]


def differences_to_baseline(
    tables: Tables, baseline: PredictionTable, draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Differences]:  # fmt: skip
    """`paired_differences` of each table minus the baseline; all are resampled together."""
    base, *others = (table.labeled for table in align([baseline, *tables.values()]))
    clusters = Clusters.from_patients(base.patients, base.labels)
    contrasts = [[(at, 0)] for at in range(1, len(others) + 1)]
    of_sums = _differences_of_sums([base, *others], contrasts, clusters, draws, seed)
    auroc, differences = _auroc_differences(base, others, clusters), {}
    for at, name in enumerate(tables):
        differences[name] = in_registry_order({**of_sums[at], "auroc": auroc[at]})
    return differences


def mean_paired_differences(pairs: Sequence[Pair], draws: int = DRAWS) -> Differences:
    """Mean over pairs of first minus second; training runs are fixed, patients are resampled."""
    tables = [table.labeled for table in align([table for pair in pairs for table in pair])]
    clusters = Clusters.from_patients(tables[0].patients, tables[0].labels)
    contrast = [(at, at + 1) for at in range(0, len(tables), 2)]
    return _differences_of_sums(tables, [contrast], clusters, draws, 0)[0]


def better_or_worse(name: str, difference: Difference) -> str:
    """`better`, `worse` or `no clear difference`: interval and corrected p-value must agree."""
    low, high = difference.estimate.low, difference.estimate.high
    has_sign = low is not None and high is not None and max(low, -high) > SMALLEST_SHOWN
    if low is None or not has_sign or difference.p_value >= 0.05:
        return "no clear difference"
    return "better" if metric_spec(name).is_improvement(low) else "worse"


def holm_corrected(comparisons: Mapping[str, Differences]) -> dict[str, Differences]:
    """The same comparisons, with each metric's p-values corrected by Holm over all of them."""
    adjusted = {
        metric: holm([differences[metric].p_value for differences in comparisons.values()])
        for metric in next(iter(comparisons.values()), {})
    }
    return {
        name: {
            metric: replace(d, p_value=adjusted[metric][at], test=f"{d.test}, Holm")
            for metric, d in differences.items()
        }
        for at, (name, differences) in enumerate(comparisons.items())
    }


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    p = np.asarray(p_values, float)
    order, adjusted = np.argsort(p, kind="stable"), np.empty(len(p))
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(x) for x in adjusted]


def mcnemar(first_correct: np.ndarray, second_correct: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test; 1 if both are right on the same images."""
    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def sign_test(pairs: Sequence[Pair], clusters: Clusters) -> float:
    """p-value of the sign test on patients for whom the first model is right more or less often."""
    correct = [[table.predictions == table.labels for table in pair] for pair in pairs]
    gaps = np.sum([first.astype(float) - second for first, second in correct], axis=0)
    of_patient = clusters.sum_by_patient(gaps[:, None])
    return mcnemar(of_patient[:, 0] > 0, of_patient[:, 0] < 0)


def bootstrap_p_value(resampled: np.ndarray) -> float:
    """Two-sided p-value: twice the fraction of resampled differences on the rarer side of 0."""
    finite = resampled[np.isfinite(resampled)]
    tail = min((finite <= 0).sum(), (finite >= 0).sum()) + 1
    return float(min(1.0, 2 * tail / (len(finite) + 1)))


def _differences_of_sums(
    tables: Sequence[PredictionTable], contrasts: Sequence[Sequence[tuple[int, int]]],
    clusters: Clusters, draws: int, seed: int,
) -> list[Differences]:  # fmt: skip
    """Differences, by metric, for each contrast: the mean over its pairs of table positions."""
    specs = [spec for spec in METRICS.values() if spec.is_paired and spec.kind in KINDS]
    columns = SumColumns.from_table(specs, tables[0])
    parts = [clusters.sum_by_patient(columns.of_table(table)) for table in tables]

    def statistic(sums: np.ndarray) -> np.ndarray:
        """Mean differences (r, contrasts x m), contrast by contrast."""
        of_table = [columns.metrics(part) for part in np.split(sums, len(parts), axis=1)]
        means = [
            [np.mean([of_table[at] for at in side], axis=0) for side in zip(*pairs, strict=True)]
            for pairs in contrasts
        ]
        return np.hstack([first - second for first, second in means])

    replicates = bootstrap.bootstrap_both(hstack(parts).tocsr(), statistic, clusters, draws, seed)
    pairs_of = [[(tables[i], tables[j]) for i, j in contrast] for contrast in contrasts]
    names = columns.names()
    return [
        {
            name: _difference(replicates, at * len(names) + column, spec, pairs, clusters)
            for column, (name, spec) in enumerate(names)
        }
        for at, pairs in enumerate(pairs_of)
    ]


def _difference(
    replicates: tuple[Replicates, Replicates], at: int, spec: MetricSpec, pairs: Sequence[Pair],
    clusters: Clusters,
) -> Difference:  # fmt: skip
    """The Difference of statistic `at`; p is below 1 only with an interval or by an exact test."""
    selected, reason = _select(replicates, at, spec, pairs[0][0], clusters)
    value, is_centered = float(selected.value[0]), spec.interval == "centered bootstrap"
    # percentiles agree with the p-value; BCa is too narrow if few patients differ
    low, high = selected.percentile_interval(0, is_centered)
    has_interval = bool(np.isfinite(low))
    if not has_interval and value == 0:
        if all(_has_equal_probabilities(*pair) for pair in pairs):
            low = high = 0.0
        elif spec.name == "accuracy":
            high = wilson_interval(0, clusters.num_patients)[1]
            low = -high
    method = CENTERED if is_centered else PERCENTILES
    size = (len(pairs[0][0]), clusters.num_patients, reason or ABSENT)
    estimate = make_estimate((value, low, high), method, *size)
    if spec.name == "accuracy":
        is_single = clusters.has_one_row_per_patient
        test = "McNemar, exact" if is_single else "sign test over patients, exact"
        return Difference(estimate, sign_test(pairs, clusters), test)
    p_value = bootstrap_p_value(selected.resampled[:, 0]) if has_interval else 1.0
    return Difference(estimate, p_value, "paired bootstrap")


def _select(
    replicates: tuple[Replicates, Replicates], at: int, spec: MetricSpec, table: PredictionTable,
    clusters: Clusters,
) -> tuple[Replicates, str]:  # fmt: skip
    """Replicates of statistic `at`, and "" or why they are NaN: a class has too few patients."""
    within, without_strata = replicates
    if spec.weights_images_equally:
        return without_strata.select(at), ""
    patients = clusters.patients_with(table.one_hot_labels)
    reason, n = bootstrap.too_few_patients(table.class_names, patients), int(patients.min())
    if reason or n < 2:
        return within.select(at, np.nan), reason
    # else 1 in 8 differences of equal models is significant at 5 % if n is 8
    student = stdtrit(n - 1, 0.5 + CONFIDENCE_LEVEL / 2) / ndtri(0.5 + CONFIDENCE_LEVEL / 2)
    return within.select(at, float(student * np.sqrt(n / (n - 1)))), reason


def _has_equal_probabilities(first: PredictionTable, second: PredictionTable) -> bool:
    """Whether two tables are equal up to the rounding of float32 logits."""
    gaps = np.abs(first.probabilities - second.probabilities)
    return bool(gaps.max() <= bootstrap.FLOAT32_TOLERANCE)


def _auroc_differences(
    base: PredictionTable, others: Sequence[PredictionTable], clusters: Clusters
) -> list[Difference]:
    """Macro AUROC of each table minus that of the baseline, by DeLong."""
    k, tables = len(base.class_names), (base, *others)
    positive = np.tile(base.one_hot_labels, len(tables))
    areas = delong(np.hstack([table.probabilities for table in tables]), positive, clusters)
    is_single = clusters.has_one_row_per_patient
    method = "paired DeLong" if is_single else "paired cluster-robust DeLong"
    size, differences = (len(base), clusters.num_patients, ABSENT), []
    for at, other in enumerate(others, start=1):
        value, low, high, p = areas.difference(np.arange(at * k, (at + 1) * k), np.arange(k))
        if value == 0 and _has_equal_probabilities(other, base):
            low = high = 0.0
        estimate = make_estimate((value, low, high), method, *size)
        differences.append(Difference(estimate, p, method))
    return differences
