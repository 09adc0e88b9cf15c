"""Thresholds of a probability that are fitted on val, and the decisions by them on test."""

import numpy as np

from evaluation.metrics.clinical import (
    ClinicalUse,
    outcome_table,
    shown_outcomes,
    use_of,
    with_use_of,
)
from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.registry import METRICS
from evaluation.predictions import PredictionTable, refuse_test
from evaluation.stats.bootstrap import DRAWS
from evaluation.stats.estimate import Estimate, Estimates

OperatingPoints = dict[str, dict[str, Estimates]]  # metrics by outcome and rule
NOT_FITTED = "val has no image with the outcome, or none without it"
TOLERANCE = 1e-9  # rates that differ by less are equal up to rounding


def fit_thresholds(table: PredictionTable, use: ClinicalUse) -> dict[str, float | None]:
    """Threshold, by rule, for the probability of the second of two classes, fitted on val.

    - The greatest balanced accuracy, accuracy at the expected prevalence if one is stated, or net
      benefit: in the middle of the best thresholds.
    - A sensitivity (specificity) of at least the stated one: the greatest (smallest) threshold.

    None if val lacks a class. ValueError for test rows.
    """
    refuse_test(table, "a decision threshold")
    known = table.labels >= 0
    order = np.argsort(table.probabilities[known, 1])
    scores, is_positive = table.probabilities[known, 1][order], table.labels[known][order] == 1
    between = np.flatnonzero(np.diff(scores) > 0) + 1  # images below each possible threshold
    below = np.concatenate([[0], between, [len(scores)]])
    thresholds = np.concatenate([[0.0], (scores[between - 1] + scores[between]) / 2, [1.0]])
    cases, others = int(is_positive.sum()), int((~is_positive).sum())
    missed = np.concatenate([[0], is_positive.cumsum()])[below]
    sensitivity, specificity = 1 - missed / max(cases, 1), (below - missed) / max(others, 1)
    false_alarms, at = (1 - specificity) * others, np.arange(len(thresholds))
    maximized = {
        "best balanced accuracy on val (Youden)": sensitivity + specificity,
        f"sensitivity {use.sensitivity:g} on val": np.where(
            sensitivity >= use.sensitivity - TOLERANCE, at, -np.inf
        ),
        f"specificity {use.specificity:g} on val": np.where(
            specificity >= use.specificity - TOLERANCE, -at, -np.inf
        ),
        "least cost on val": sensitivity * cases - false_alarms / use.false_alarms_per_case,
    }
    prevalence = use.expected_prevalence.get(table.class_names[1])
    if prevalence is not None:
        maximized[f"fewest errors on val, weighted to prevalence {prevalence:g}"] = (
            prevalence * sensitivity + (1 - prevalence) * specificity
        )
    fitted = dict[str, float | None]()
    for rule, values in maximized.items():
        best = np.flatnonzero(values >= values.max() - TOLERANCE)
        fitted[rule] = float(thresholds[best[len(best) // 2]]) if cases and others else None
    return fitted


def evaluate_thresholds(
    val: PredictionTable, test: PredictionTable, draws: int = DRAWS, seed: int = 0
) -> OperatingPoints:
    """Metrics on test of decisions for each shown outcome by 0.5 and by `fit_thresholds` on val.

    Where classes are not as frequent as in training, or errors not equally serious, the largest
    probability need not be the best decision.
    """
    val, points = with_use_of(test, val), OperatingPoints()
    for outcome in shown_outcomes(test):
        on_val, on_test = (outcome_table(table, outcome) for table in (val, test))
        points[outcome] = {"0.5": decision_metrics(on_test, outcome, 0.5, draws, seed)}
        for rule, threshold in fit_thresholds(on_val, use_of(test)).items():
            name = rule if threshold is None else f"{threshold:.3g}, {rule}"
            points[outcome][name] = decision_metrics(on_test, outcome, threshold, draws, seed)
    return points


def decision_metrics(
    table: PredictionTable, outcome: str, threshold: float | None, draws: int, seed: int
) -> Estimates:
    """Metrics if `outcome` is predicted at probabilities >= `threshold`, for an `outcome_table`.

    With `threshold` None (val lacks cases), each metric has no value, but the reason.
    """
    kinds = ("confusion", "prevalence")
    specs = [spec for spec in METRICS.values()
             if spec.kind in kinds and (spec.scope != "overall" or spec.in_summary)]  # fmt: skip
    decided = table.at_threshold(0.5 if threshold is None else threshold)
    metrics = compute_metrics(decided, draws, seed, specs)
    if threshold is None:
        metrics = dict.fromkeys(metrics, Estimate(None, None, None, "none", 0, 0, NOT_FITTED))
    of_outcome = {name: f"{name}/".partition("/")[2] for name in metrics}
    return {name: estimate for name, estimate in metrics.items()
            if not of_outcome[name] or of_outcome[name].startswith(f"{outcome}/")}  # fmt: skip
