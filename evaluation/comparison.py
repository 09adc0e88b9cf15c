"""Two models on the same images: paired differences, their tests, and what may be said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import hstack
from scipy.stats import binomtest

from evaluation import summary
from evaluation.auc import areas
from evaluation.intervals import DRAWS, Clusters, Figure, Replicates, bootstrap, figure, wilson
from evaluation.table import PredictionTable, align

COMPARED = ("accuracy", "balanced_accuracy", "f1_macro", "kappa", "mcc", "nll", "brier", "ece")
ROUNDING = 1e-6  # what float32 logits in a table can move a figure by
LOWER_IS_BETTER = ("nll", "brier", "ece", "ece_classwise")
ABSENT = "a class is absent, or no redraw differs"
Pair = tuple[PredictionTable, PredictionTable]


@dataclass(frozen=True)
class Difference:
    """First minus second, with its interval and the p-value of no difference.

    `p` is not yet corrected for how many comparisons are made: see `corrected`.
    """

    figure: Figure
    p: float
    test: str


Differences = dict[str, Difference]


def mcnemar(first_right: np.ndarray, second_right: np.ndarray) -> float:
    """Exact two-sided p-value of McNemar's test; 1 where the two never differ."""
    only_first = int((first_right & ~second_right).sum())
    only_second = int((second_right & ~first_right).sum())
    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values, in the order given."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(steps, 1.0)
    return [float(x) for x in adjusted]


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
    tables = [table.labelled for table in align([table for pair in pairs for table in pair])]
    clusters = Clusters.make(tables[0].patients, tables[0].labels)
    every = range(len(tables))
    redrawn = _redrawn(tables, [(every[::2], every[1::2])], clusters, draws, seed)
    aligned = list(zip(tables[::2], tables[1::2], strict=True))
    return {m: _difference(redrawn, at, m, aligned, clusters) for at, m in enumerate(COMPARED)}


def _all(
    tables: Mapping[str, PredictionTable], baseline: PredictionTable, draws: int, seed: int
) -> dict[str, Differences]:
    """Baseline and tables are redrawn together, so each draw is shared by all."""
    base, *others = (table.labelled for table in align([baseline, *tables.values()]))
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
        if clusters.single:
            right = [t.logits.argmax(axis=1) == t.labels for t in (other, base)]
            p = mcnemar(right[0], right[1])
            each["accuracy"] = replace(each["accuracy"], p=p, test="McNemar, exact")
        found[name] = {**each, "auroc": gaps[at]}
    return found


def _redrawn(
    tables: Sequence[PredictionTable],
    asked: Sequence[tuple[Sequence[int], Sequence[int]]],
    clusters: Clusters,
    draws: int,
    seed: int,
) -> Replicates:
    """For each of `asked`, COMPARED of the tables at its first places minus the second's, means."""
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

    return bootstrap(hstack(parts).tocsr(), statistic, clusters, draws, seed)


def _difference(
    redrawn: Replicates, at: int, metric: str, pairs: Sequence[Pair], clusters: Clusters
) -> Difference:
    value = float(redrawn.value[at])
    low, high = (redrawn.centred if metric in summary.CENTRED else redrawn.interval)(at)
    if np.isnan(low) and value == 0:
        low, high = _unvaried(metric, all(_same(*pair) for pair in pairs), clusters.count)
    size = (len(pairs[0][0]), clusters.count, ABSENT)
    found = figure((value, low, high), "paired patient bootstrap, BCa", *size)
    return Difference(found, _sign_p(redrawn.redrawn[:, at]), "paired bootstrap")


def _same(first: PredictionTable, second: PredictionTable) -> bool:
    return bool(np.allclose(first.probabilities, second.probabilities, rtol=0, atol=ROUNDING))


def _unvaried(name: str, same: bool, patients: int) -> tuple[float, float]:
    """The interval where no redraw differs: nothing if the two are one, else Wilson's bound."""
    if same:
        return 0.0, 0.0
    bound = wilson(0, patients)[1] if name == "accuracy" else np.nan
    return -bound, bound


def _sign_p(redrawn: np.ndarray) -> float:
    """Two-sided p-value: how rarely the redraws fall on the far side of no difference."""
    usable = redrawn[np.isfinite(redrawn)]
    if len(usable) == 0:
        return 1.0
    tail = min((usable <= 0).sum(), (usable >= 0).sum()) + 1
    return float(min(1.0, 2 * tail / (len(usable) + 1)))


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
        parts = (value, low, high)
        gap = figure(parts, method, len(base), clusters.count, ABSENT)
        gaps.append(Difference(gap, p, method))
    return gaps


def verdict(name: str, difference: Difference) -> str:
    """`gain`, `loss` or `no evidence of gain`: what interval and corrected p together allow."""
    found = difference.figure
    if found.low is None or found.high is None or difference.p >= 0.05:
        return "no evidence of gain"
    if found.low <= ROUNDING and found.high >= -ROUNDING:
        return "no evidence of gain"
    return "gain" if (found.low > 0) != (name in LOWER_IS_BETTER) else "loss"
