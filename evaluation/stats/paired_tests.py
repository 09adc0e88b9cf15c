"""Two models on the same images: paired differences, their tests, and what may be said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import hstack
from scipy.special import ndtri, stdtrit

from evaluation.predictions import PredictionTable, align
from evaluation.stats import summary
from evaluation.stats.auc import areas
from evaluation.stats.clusters import Clusters
from evaluation.stats.estimate import (
    DRAWS,
    LEVEL,
    Estimate,
    Replicates,
    bootstrap,
    make_estimate,
    wilson,
)
from evaluation.stats.significance import Pair, far_side, holm, sign_test
from evaluation.stats.small_samples import few

COMPARED = ("accuracy", "balanced_accuracy", "f1_macro", "kappa", "mcc", "nll", "brier", "ece")
SHOWN = 5e-5  # what is nearer to 0 is printed as 0.0000, and is no gain
ROUNDING = 1e-6  # what float32 logits in a table can move a figure by
LOWER_IS_BETTER = ("nll", "brier", "ece", "ece_classwise")
ABSENT = "a class is absent, or no redraw differs"
PERCENTILES, CENTRED = "paired patient bootstrap, percentiles", "paired patient bootstrap, centerd"


@dataclass(frozen=True)
class Difference:
    """First minus second, with its interval and the p-value of no difference.

    `p` is not yet corrected for how many comparisons are made: see `corrected`.
    """

    figure: Estimate
    p: float
    test: str


Differences = dict[str, Difference]


def differences(
    first: PredictionTable, second: PredictionTable, draws: int = DRAWS, seed: int = 0
) -> Differences:
    """Paired differences of the figures in COMPARED and of the macro AUC, by name."""
    return _all({"": first}, second, draws, seed)[""]


def against(
    tables: Mapping[str, PredictionTable],
    baseline: PredictionTable,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, Differences]:
    """`differences` of each table to the baseline, p-values corrected by Holm over the tables."""
    return corrected(_all(tables, baseline, draws, seed))


def corrected(found: Mapping[str, Differences]) -> dict[str, Differences]:
    """The same comparisons, the p-values of each metric corrected by Holm over all of them."""
    adjusted = {
        metric: holm([each[metric].p for each in found.values()])
        for metric in next(iter(found.values()), {})
    }
    return {
        name: {
            metric: replace(one, p=adjusted[metric][at], test=f"{one.test}, Holm")
            for metric, one in each.items()
        }
        for at, (name, each) in enumerate(found.items())
    }


def mean_differences(pairs: Sequence[Pair], draws: int = DRAWS, seed: int = 0) -> Differences:
    """Mean over pairs of first minus second: the same images seen by models of several seeds.

    Patients are redrawn for all pairs at once; the models are taken as they are, so what chance
    in training moves is in no interval.
    """
    tables = [table.labeled for table in align([table for pair in pairs for table in pair])]
    clusters = Clusters.make(tables[0].patients, tables[0].labels)
    every = range(len(tables))
    redrawn = _redrawn(tables, [(every[::2], every[1::2])], clusters, draws, seed)
    aligned = list(zip(tables[::2], tables[1::2], strict=True))
    return {m: _difference(redrawn, at, m, aligned, clusters) for at, m in enumerate(COMPARED)}


def _all(
    tables: Mapping[str, PredictionTable], baseline: PredictionTable, draws: int, seed: int
) -> dict[str, Differences]:
    """Baseline and tables are redrawn together, so each draw is shared by all."""
    base, *others = (table.labeled for table in align([baseline, *tables.values()]))
    clusters = Clusters.make(base.patients, base.labels)
    asked = [([at], [0]) for at in range(1, len(others) + 1)]
    redrawn = _redrawn([base, *others], asked, clusters, draws, seed)
    gaps = _auroc_gaps(base, others, clusters)
    found = {}
    for at, (name, other) in enumerate(zip(tables, others, strict=True)):
        first = at * len(COMPARED)
        each = {
            metric: _difference(redrawn, first + m, metric, [(other, base)], clusters)
            for m, metric in enumerate(COMPARED)
        }
        found[name] = {**each, "auroc": gaps[at]}
    return found


def _redrawn(
    tables: Sequence[PredictionTable],
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
    clusters: Clusters,
    draws: int,
    seed: int,
) -> tuple[Replicates, Replicates]:
    """For each of `asked`, COMPARED of the tables at its first places minus the second's, means.

    Redrawn in strata, for figures in which classes weigh alike, and from all patients at once.
    """
    k = len(tables[0].class_names)
    parts = [clusters.total(summary.columns(table, classwise=False)) for table in tables]

    def statistic(sums: np.ndarray) -> np.ndarray:
        each = [summary.overall(part, k) for part in np.split(sums, len(parts), axis=1)]
        gaps = [
            np.mean([each[at][name] for at in first], axis=0)
            - np.mean([each[at][name] for at in second], axis=0)
            for first, second in asked
            for name in COMPARED
        ]
        return np.column_stack(gaps)

    sums = hstack(parts).tocsr()
    within = bootstrap(sums, statistic, clusters, draws, seed)
    if not clusters.strata:
        return within, within
    return within, bootstrap(sums, statistic, clusters.whole, draws, seed)


def _difference(
    redrawn: tuple[Replicates, Replicates],
    at: int,
    metric: str,
    pairs: Sequence[Pair],
    clusters: Clusters,
) -> Difference:
    """One difference; it has a p-value below 1 only where it has an interval, or an exact test.

    BCa would take the skew of a few patients that differ for certainty; percentiles do not, and
    agree with the p-value.
    """
    drawn, reason = _drawn(redrawn, at, metric, pairs[0][0], clusters)
    value, centerd = float(drawn.value[0]), metric in summary.CENTRED
    low, high = drawn.centerd(0) if centerd else drawn.percentiles(0)
    known = bool(np.isfinite(low))
    if not known and value == 0:
        low, high = _unvaried(metric, all(_same(*pair) for pair in pairs), clusters.count)
    size = (len(pairs[0][0]), clusters.count, reason or ABSENT)
    found = make_estimate((value, low, high), CENTRED if centerd else PERCENTILES, *size)
    if metric == "accuracy":
        test = "McNemar, exact" if clusters.single else "sign test over patients, exact"
        return Difference(found, sign_test(pairs, clusters), test)
    return Difference(found, far_side(drawn.redrawn[:, 0]) if known else 1.0, "paired bootstrap")


def _drawn(
    redrawn: tuple[Replicates, Replicates],
    at: int,
    metric: str,
    table: PredictionTable,
    clusters: Clusters,
) -> tuple[Replicates, str]:
    """The draws of one statistic; none, and the reason, where a class has too few patients.

    In a mean over classes n patients of the rarest spread as Student's with n - 1 degrees of
    freedom. Without that, redraws take 1 in 8 differences of equal models for real where n is 8.
    """
    within, among = redrawn
    if metric in summary.BY_IMAGE:
        return among.only(at), ""
    own = table.labels[:, None] == np.arange(len(table.class_names))
    held = clusters.holding(own)
    reason = few(table.class_names, held)
    return within.only(at, np.nan if reason else _student(int(held.min()))), reason


def _student(n: int) -> float:
    """How much wider than the spread of redraws is what n patients leave open."""
    if n < 2:
        return np.nan
    z = ndtri(0.5 + LEVEL / 2)
    return float(stdtrit(n - 1, 0.5 + LEVEL / 2) / z * np.sqrt(n / (n - 1)))


def _same(first: PredictionTable, second: PredictionTable) -> bool:
    return bool(np.allclose(first.probabilities, second.probabilities, rtol=0, atol=ROUNDING))


def _unvaried(name: str, same: bool, patients: int) -> tuple[float, float]:
    """The interval where no redraw differs: nothing if the two are one, else Wilson's bound."""
    if same:
        return 0.0, 0.0
    bound = wilson(0, patients)[1] if name == "accuracy" else np.nan
    return -bound, bound


def _auroc_gaps(
    base: PredictionTable, others: Sequence[PredictionTable], clusters: Clusters
) -> list[Difference]:
    """Difference of each table's macro AUC to the baseline's."""
    k, every = len(base.class_names), (base, *others)
    positive = np.tile(base.labels[:, None] == np.arange(k), len(every))
    found = areas(np.hstack([table.probabilities for table in every]), positive, clusters)
    method = "paired DeLong" if clusters.single else "paired cluster-robust DeLong"
    gaps = []
    for at in range(1, len(every)):
        value, low, high, p = found.difference(np.arange(at * k, (at + 1) * k), np.arange(k))
        if value == 0 and _same(others[at - 1], base):
            low, high = 0.0, 0.0
        gap = make_estimate((value, low, high), method, len(base), clusters.count, ABSENT)
        gaps.append(Difference(gap, p, method))
    return gaps


def verdict(name: str, difference: Difference) -> str:
    """`gain`, `loss` or `no evidence of gain`: what interval and corrected p together allow."""
    found = difference.figure
    if found.low is None or found.high is None or difference.p >= 0.05:
        return "no evidence of gain"
    if found.low <= SHOWN and found.high >= -SHOWN:
        return "no evidence of gain"
    return "gain" if (found.low > 0) != (name in LOWER_IS_BETTER) else "loss"
