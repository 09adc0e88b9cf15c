"""Two models on the same images: paired differences, their intervals, tests and corrections."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import hstack
from scipy.special import ndtri, stdtrit
from scipy.stats import binomtest

from evaluation.metrics.registry import METRICS, MetricSpec, metric_spec
from evaluation.metrics.sums import KINDS, SumColumns
from evaluation.predictions import PredictionTable, align
from evaluation.stats.auc import delong
from evaluation.stats.bootstrap import (
    DRAWS,
    FLOAT32_TOLERANCE,
    LEVEL,
    Clusters,
    Replicates,
    bootstrap,
    too_few_patients,
)
from evaluation.stats.estimate import Estimate, make_estimate, wilson_interval

SMALLEST_SHOWN = 5e-5  # smaller differences are printed as 0.0000 and are not called a gain
ABSENT = "a class is absent, or all resamples have the same difference"
PERCENTILES = "paired bootstrap over patients, percentiles"
CENTERED = "paired bootstrap over patients, centered"

Pair = tuple[PredictionTable, PredictionTable]
Contrast = tuple[Sequence[int], Sequence[int]]  # positions of the first and of the second tables


@dataclass(frozen=True)
class Difference:
    """First minus second, with its interval and the two-sided p-value of no difference.

    `p_value` is not corrected for the number of comparisons: see `holm_corrected`.
    """

    estimate: Estimate
    p_value: float
    test: str


Differences = dict[str, Difference]


def paired_differences(
    first: PredictionTable, second: PredictionTable, draws: int = DRAWS, seed: int = 0
) -> Differences:
    """First minus second for each metric that the registry marks as paired, by name."""
    return _differences({"": first}, second, draws, seed)[""]


def differences_to_baseline(
    tables: Mapping[str, PredictionTable],
    baseline: PredictionTable,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Differences]:
    """Each table minus the baseline, p-values corrected by Holm over the tables."""
    return holm_corrected(_differences(tables, baseline, draws, seed))


def mean_paired_differences(
    pairs: Sequence[Pair], draws: int = DRAWS, seed: int = 0
) -> Differences:
    """Mean over pairs of first minus second: the same images, models of several seeds.

    Patients are resampled for all pairs at once. The models are fixed: the intervals do not
    include the variation between training runs.
    """
    tables = [table.labeled for table in align([table for pair in pairs for table in pair])]
    clusters = Clusters.from_patients(tables[0].patients, tables[0].labels)
    positions = range(len(tables))
    replicates = _replicates(tables, [(positions[::2], positions[1::2])], clusters, draws, seed)
    aligned = list(zip(tables[::2], tables[1::2], strict=True))
    return {
        spec.name: _difference(replicates, at, spec, aligned, clusters)
        for at, spec in enumerate(_paired_specs())
    }


def gain_or_loss(name: str, difference: Difference) -> str:
    """`gain`, `loss` or `no evidence of gain`: interval and corrected p-value must agree."""
    low, high = difference.estimate.low, difference.estimate.high
    if low is None or high is None or difference.p_value >= 0.05:
        return "no evidence of gain"
    if low <= SMALLEST_SHOWN and high >= -SMALLEST_SHOWN:
        return "no evidence of gain"
    return "gain" if metric_spec(name).is_improvement(low) else "loss"


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
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(x) for x in adjusted]


def mcnemar(first_correct: np.ndarray, second_correct: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test; 1 if both are right on the same images."""
    only_first = int((first_correct & ~second_correct).sum())
    only_second = int((second_correct & ~first_correct).sum())
    discordant = only_first + only_second
    return float(binomtest(only_first, discordant).pvalue) if discordant else 1.0


def sign_test(pairs: Sequence[Pair], clusters: Clusters) -> float:
    """Exact two-sided p-value from the patients for whom the first is right more or less often.

    With one image a patient it is McNemar's test.
    """
    correct = [[table.predictions == table.labels for table in pair] for pair in pairs]
    gaps = np.sum([first.astype(float) - second for first, second in correct], axis=0)
    of_patient = clusters.sum_by_patient(gaps[:, None])
    return mcnemar(of_patient[:, 0] > 0, of_patient[:, 0] < 0)


def bootstrap_p_value(resampled: np.ndarray) -> float:
    """Two-sided p-value: twice the fraction of resampled differences on the rarer side of 0."""
    finite = resampled[np.isfinite(resampled)]
    if len(finite) == 0:
        return 1.0
    tail = min((finite <= 0).sum(), (finite >= 0).sum()) + 1
    return float(min(1.0, 2 * tail / (len(finite) + 1)))


def _paired_specs() -> list[MetricSpec]:
    """The paired metrics that are functions of sums."""
    return [spec for spec in METRICS.values() if spec.is_paired and spec.kind in KINDS]


def _differences(
    tables: Mapping[str, PredictionTable], baseline: PredictionTable, draws: int, seed: int
) -> dict[str, Differences]:
    """Each table minus the baseline; all tables are resampled together."""
    base, *others = (table.labeled for table in align([baseline, *tables.values()]))
    clusters = Clusters.from_patients(base.patients, base.labels)
    contrasts = [([at], [0]) for at in range(1, len(others) + 1)]
    replicates = _replicates([base, *others], contrasts, clusters, draws, seed)
    auroc, specs = _auroc_differences(base, others, clusters), _paired_specs()
    differences = {}
    for at, (name, other) in enumerate(zip(tables, others, strict=True)):
        of_sums = {
            spec.name: _difference(
                replicates, at * len(specs) + column, spec, [(other, base)], clusters
            )
            for column, spec in enumerate(specs)
        }
        unordered = {**of_sums, "auroc": auroc[at]}
        differences[name] = {m: unordered[m] for m in METRICS if m in unordered}
    return differences


def _replicates(
    tables: Sequence[PredictionTable],
    contrasts: Sequence[Contrast],
    clusters: Clusters,
    draws: int,
    seed: int,
) -> tuple[Replicates, Replicates]:
    """For each contrast and metric: mean of the first tables minus mean of the second.

    Resampled within strata, for metrics that weight classes equally, and without.
    """
    columns = SumColumns(_paired_specs(), tables[0].class_names)
    parts = [clusters.sum_by_patient(columns.of_table(table)) for table in tables]

    def statistic(sums: np.ndarray) -> np.ndarray:
        of_table = [columns.metrics(part) for part in np.split(sums, len(parts), axis=1)]
        return np.hstack(
            [
                np.mean([of_table[at] for at in first], axis=0)
                - np.mean([of_table[at] for at in second], axis=0)
                for first, second in contrasts
            ]
        )

    sums = hstack(parts).tocsr()
    within = bootstrap(sums, statistic, clusters, draws, seed)
    if not clusters.has_strata:
        return within, within
    return within, bootstrap(sums, statistic, clusters.without_strata, draws, seed)


def _difference(
    replicates: tuple[Replicates, Replicates],
    at: int,
    spec: MetricSpec,
    pairs: Sequence[Pair],
    clusters: Clusters,
) -> Difference:
    """One difference; its p-value is below 1 only with an interval or by an exact test.

    Percentiles agree with the p-value. BCa would correct for the skew of the few patients that
    differ, and give an interval that is too narrow.
    """
    selected, reason = _select(replicates, at, spec, pairs[0][0], clusters)
    value, is_centered = float(selected.value[0]), spec.interval == "centered bootstrap"
    low, high = selected.centered_interval(0) if is_centered else selected.percentile_interval(0)
    has_interval = bool(np.isfinite(low))
    if not has_interval and value == 0:
        is_equal = all(_has_equal_probabilities(*pair) for pair in pairs)
        low, high = _interval_without_spread(spec.name, is_equal, clusters.num_patients)
    size = (len(pairs[0][0]), clusters.num_patients, reason or ABSENT)
    estimate = make_estimate((value, low, high), CENTERED if is_centered else PERCENTILES, *size)
    if spec.name == "accuracy":
        is_single = clusters.has_one_row_per_patient
        test = "McNemar, exact" if is_single else "sign test over patients, exact"
        return Difference(estimate, sign_test(pairs, clusters), test)
    p_value = bootstrap_p_value(selected.resampled[:, 0]) if has_interval else 1.0
    return Difference(estimate, p_value, "paired bootstrap")


def _select(
    replicates: tuple[Replicates, Replicates],
    at: int,
    spec: MetricSpec,
    table: PredictionTable,
    clusters: Clusters,
) -> tuple[Replicates, str]:
    """The replicates of one statistic, or NaN and the reason if a class has too few patients.

    In a mean over classes, the spread of n patients of the rarest class is that of Student's t
    with n - 1 degrees of freedom. Without this correction 1 in 8 differences of equal models is
    significant at 5 % if n is 8.
    """
    within, without_strata = replicates
    if spec.weights_images_equally:
        return without_strata.select(at), ""
    one_hot = table.labels[:, None] == np.arange(len(table.class_names))
    patients = clusters.patients_with(one_hot)
    reason = too_few_patients(table.class_names, patients)
    return within.select(at, np.nan if reason else _student_factor(int(patients.min()))), reason


def _student_factor(n: int) -> float:
    """Ratio of Student's interval from n patients to the normal interval of resamples."""
    if n < 2:
        return np.nan
    z = ndtri(0.5 + LEVEL / 2)
    return float(stdtrit(n - 1, 0.5 + LEVEL / 2) / z * np.sqrt(n / (n - 1)))


def _has_equal_probabilities(first: PredictionTable, second: PredictionTable) -> bool:
    """Whether two tables are equal up to the rounding of float32 logits."""
    close = np.isclose(first.probabilities, second.probabilities, rtol=0, atol=FLOAT32_TOLERANCE)
    return bool(close.all())


def _interval_without_spread(name: str, is_equal: bool, patients: int) -> tuple[float, float]:
    """The interval if all resamples are equal: 0 for equal models, else Wilson's bound."""
    if is_equal:
        return 0.0, 0.0
    bound = wilson_interval(0, patients)[1] if name == "accuracy" else np.nan
    return -bound, bound


def _auroc_differences(
    base: PredictionTable, others: Sequence[PredictionTable], clusters: Clusters
) -> list[Difference]:
    """Macro AUROC of each table minus that of the baseline, by DeLong."""
    k, tables = len(base.class_names), (base, *others)
    positive = np.tile(base.labels[:, None] == np.arange(k), len(tables))
    areas = delong(np.hstack([table.probabilities for table in tables]), positive, clusters)
    is_single = clusters.has_one_row_per_patient
    method = "paired DeLong" if is_single else "paired cluster-robust DeLong"
    differences = []
    for at in range(1, len(tables)):
        value, low, high, p = areas.difference(np.arange(at * k, (at + 1) * k), np.arange(k))
        if value == 0 and _has_equal_probabilities(others[at - 1], base):
            low, high = 0.0, 0.0
        parts, size = (value, low, high), (len(base), clusters.num_patients)
        differences.append(Difference(make_estimate(parts, method, *size, ABSENT), p, method))
    return differences
