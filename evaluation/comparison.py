"""Two models on the same images: paired differences, their tests, and what may be said."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import hstack
from scipy.special import ndtr
from scipy.stats import binomtest

from evaluation import summary
from evaluation.auc import areas
from evaluation.intervals import DRAWS, Clusters, Figure, bootstrap, wilson
from evaluation.table import PredictionTable, align

COMPARED = ("accuracy", "balanced_accuracy", "f1_macro", "kappa", "mcc", "nll", "brier", "ece")
ROUNDING = 1e-6  # what float32 logits in a table can move a figure by
LOWER_IS_BETTER = ("nll", "brier", "ece", "ece_classwise")


@dataclass(frozen=True)
class Difference:
    """First minus second, with its interval and the p-value of no difference.

    `p` is not yet corrected for how many comparisons are made: see `holm`.
    """

    figure: Figure
    p: float
    test: str


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
) -> dict[str, Difference]:
    """Paired differences of the figures in COMPARED and of the macro AUC, by name."""
    one, other = (table.labelled for table in align([first, second]))
    clusters = Clusters.make(one.patients, one.labels)
    found = _redrawn(one, other, clusters, draws, seed)
    if clusters.single:
        right = [t.logits.argmax(axis=1) == t.labels for t in (one, other)]
        p = mcnemar(right[0], right[1])
        found["accuracy"] = replace(found["accuracy"], p=p, test="McNemar, exact")
    return found | {"auroc": _auroc(one, other, clusters)}


def _redrawn(
    one: PredictionTable, other: PredictionTable, clusters: Clusters, draws: int, seed: int
) -> dict[str, Difference]:
    k = len(one.class_names)
    parts = [clusters.total(summary.columns(table)) for table in (one, other)]
    split = parts[0].shape[1]

    def statistic(sums: np.ndarray) -> np.ndarray:
        both = [summary.overall(sums[:, a], k) for a in (slice(split), slice(split, None))]
        return np.column_stack([both[0][name] - both[1][name] for name in COMPARED])

    redrawn = bootstrap(hstack(parts).tocsr(), statistic, clusters, draws, seed)
    same = bool(np.allclose(one.probabilities, other.probabilities, rtol=0, atol=ROUNDING))
    found = {}
    for at, name in enumerate(COMPARED):
        low, high = redrawn.interval(at)
        value = float(redrawn.value[at])
        if np.isnan(low) and value == 0:
            low, high = _unvaried(name, same, clusters.count)
        figure = _figure(value, low, high, "paired patient bootstrap, BCa", one, clusters)
        found[name] = Difference(figure, _sign_p(redrawn.redrawn[:, at]), "paired bootstrap")
    return found


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


def _auroc(one: PredictionTable, other: PredictionTable, clusters: Clusters) -> Difference:
    k = len(one.class_names)
    positive = np.tile(one.labels[:, None] == np.arange(k), 2)
    found = areas(np.hstack([one.probabilities, other.probabilities]), positive, clusters)
    value, low, high = found.difference(np.arange(k), np.arange(k, 2 * k))
    error = (high - low) / (2 * 1.959963984540054)
    p = 1.0 if not error > 0 else float(2 * ndtr(-abs(value) / error))
    method = "paired DeLong" if clusters.single else "paired cluster-robust DeLong"
    return Difference(_figure(value, low, high, method, one, clusters), p, method)


def _figure(
    value: float, low: float, high: float, method: str, table: PredictionTable, clusters: Clusters
) -> Figure:
    parts = [float(x) if np.isfinite(x) else None for x in (value, low, high)]
    reason = "a class is absent, or no redraw differs" if None in parts else ""
    return Figure(parts[0], parts[1], parts[2], method, len(table), clusters.count, reason)


def verdict(name: str, difference: Difference, adjusted_p: float | None = None) -> str:
    """`gain`, `loss` or `no evidence of gain`: what interval and corrected p together allow."""
    figure = difference.figure
    p = difference.p if adjusted_p is None else adjusted_p
    if figure.low is None or figure.high is None or p >= 0.05:
        return "no evidence of gain"
    if figure.low <= ROUNDING and figure.high >= -ROUNDING:
        return "no evidence of gain"
    return "gain" if (figure.low > 0) != (name in LOWER_IS_BETTER) else "loss"


def against(
    tables: Mapping[str, PredictionTable],
    baseline: PredictionTable,
    draws: int = DRAWS,
    seed: int = 0,
) -> dict[str, dict[str, Difference]]:
    """`differences` of each table to the baseline, p-values corrected by Holm over the tables."""
    found = {name: differences(table, baseline, draws, seed) for name, table in tables.items()}
    for metric in (*COMPARED, "auroc"):
        adjusted = holm([each[metric].p for each in found.values()])
        for each, p in zip(found.values(), adjusted, strict=True):
            each[metric] = replace(each[metric], p=p, test=f"{each[metric].test}, Holm")
    return found
