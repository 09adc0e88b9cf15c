"""Thresholds of a probability that are fitted on val, and the decisions by them on test."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from evaluation.metrics.clinical import ClinicalUse, outcome_table, shown_outcomes, use_of
from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.registry import METRICS
from evaluation.predictions import PredictionTable, refuse_test
from evaluation.stats.bootstrap import DRAWS
from evaluation.stats.estimate import Estimate, Estimates

OperatingPoints = dict[str, dict[str, Estimates]]  # metrics by outcome and rule
# rates of the outcome and of the others at each threshold -> what the best threshold maximizes
Criterion = Callable[[np.ndarray, np.ndarray], np.ndarray]
NOT_FITTED = "val has no image with the outcome, or none without it"
TOLERANCE = 1e-9  # rates that differ by less are equal up to rounding


def fit_threshold(table: PredictionTable, criterion: Criterion) -> float:
    """Threshold between probabilities of the second of two classes on val; refuses test.

    `criterion` maps sensitivities and specificities of all thresholds, ascending, to values; the
    threshold is in the middle of those with the largest value.
    """
    refuse_test(table, "a decision threshold")
    labeled = table.labeled
    order = np.argsort(labeled.probabilities[:, 1])
    scores, is_positive = labeled.probabilities[order, 1], labeled.labels[order] == 1
    if is_positive.all() or not is_positive.any():
        raise ValueError("a decision threshold needs images of both classes on val")
    between = np.flatnonzero(np.diff(scores) > 0) + 1  # images below each possible threshold
    below = np.concatenate([[0], between, [len(scores)]])
    thresholds = np.concatenate([[0.0], (scores[between - 1] + scores[between]) / 2, [1.0]])
    missed = np.concatenate([[0], is_positive.cumsum()])[below]
    values = criterion(1 - missed / is_positive.sum(), (below - missed) / (~is_positive).sum())
    best = np.flatnonzero(values >= values.max() - TOLERANCE)
    return float(thresholds[best[len(best) // 2]])


def youden(sensitivity: np.ndarray, specificity: np.ndarray) -> np.ndarray:
    """Youden's index plus 1, which is twice the balanced accuracy."""
    return np.asarray(sensitivity + specificity)


def at_sensitivity(least: float) -> Criterion:
    """The greatest threshold with a sensitivity of at least `least`."""
    return lambda rates, _: np.where(rates >= least - TOLERANCE, np.arange(len(rates)), -1)


def at_specificity(least: float) -> Criterion:
    """The smallest threshold with a specificity of at least `least`."""
    return lambda _, rates: np.where(rates >= least - TOLERANCE, -np.arange(len(rates)), -np.inf)


def least_cost(prevalence: float, threshold: float) -> Criterion:
    """The greatest net benefit on val, a false alarm counted as at `threshold`."""
    odds = (1 - prevalence) * threshold / (1 - threshold)
    return lambda sensitivity, specificity: prevalence * sensitivity - odds * (1 - specificity)


def evaluate_thresholds(
    val: PredictionTable, test: PredictionTable, draws: int = DRAWS, seed: int = 0
) -> OperatingPoints:
    """Metrics on test of decisions for each shown outcome by thresholds that are fitted on val.

    Where classes are not as frequent as in training, or errors not equally serious, the largest
    probability need not be the best decision.
    """
    use = use_of(test)
    val = replace(val, meta={**val.meta, "clinical_use": test.meta.get("clinical_use")})
    points = OperatingPoints()
    for outcome in shown_outcomes(test):
        on_val, on_test = (outcome_table(table, outcome) for table in (val, test))
        points[outcome] = {
            rule: _decision_metrics(on_test, outcome, threshold, draws, seed)
            for rule, threshold in _thresholds(on_val, use).items()
        }
    return points


def _thresholds(val: PredictionTable, use: ClinicalUse) -> dict[str, float | None]:
    """The threshold of each rule by its label; None if it cannot be fitted on val."""
    labels = val.labels[val.labels >= 0]
    prevalence = float(labels.mean()) if len(labels) else 0.0
    criteria = {
        "best balanced accuracy on val (Youden)": youden,
        f"sensitivity {use.sensitivity:g} on val": at_sensitivity(use.sensitivity),
        f"specificity {use.specificity:g} on val": at_specificity(use.specificity),
        "least cost on val": least_cost(prevalence, use.threshold),
    }
    thresholds: dict[str, float | None] = {"0.5": 0.5}
    for label, criterion in criteria.items():
        if 0 < prevalence < 1:
            fitted = fit_threshold(val, criterion)
            thresholds[f"{fitted:.3g}, {label}"] = fitted
        else:
            thresholds[label] = None
    return thresholds


def _decision_metrics(
    table: PredictionTable, outcome: str, threshold: float | None, draws: int, seed: int
) -> Estimates:
    """Summary metrics of decisions at a threshold, and those of the outcome."""
    specs = [
        spec
        for spec in METRICS.values()
        if spec.kind in ("confusion", "prevalence") and (spec.scope != "overall" or spec.in_summary)
    ]
    decided = table if threshold is None else table.at_threshold(threshold)
    metrics = compute_metrics(decided, draws, seed, specs)
    if threshold is None:
        empty = Estimate(None, None, None, "none", len(table), 0, NOT_FITTED)
        metrics = dict.fromkeys(metrics, empty)
    return {
        name: estimate
        for name, estimate in metrics.items()
        if (of := name.partition("/")[2]) in ("", outcome) or of.startswith(f"{outcome}/")
    }
