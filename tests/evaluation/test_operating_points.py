"""Thresholds fitted on val against searches over all thresholds, and rates against counts."""

from dataclasses import replace

import numpy as np
import pytest

from evaluation.metrics.clinical import ClinicalUse
from evaluation.metrics.compute import compute_metrics, epoch_metrics
from evaluation.metrics.operating_points import (
    NOT_FITTED,
    evaluate_thresholds,
    fit_thresholds,
)
from evaluation.predictions import PredictionTable
from evaluation.reports.clinical import operating_point_tables
from tests.evaluation.tables import make_table, two_class_table

YOUDEN = "best balanced accuracy on val (Youden)"
USE = {"class_groups": {"severe": ["comminuted", "other"]}, "prevalences": [0.02, 0.3]}


def rates_at(table: PredictionTable, threshold: float) -> tuple[float, float]:
    """Sensitivity and specificity of decisions above a threshold, by counting."""
    above, positive = table.probabilities[:, 1] > threshold, table.labels == 1
    return above[positive].mean(), (~above)[~positive].mean()


def every_threshold(table: PredictionTable) -> np.ndarray:
    scores = np.unique(table.probabilities[:, 1])
    return np.concatenate([[0.0], (scores[1:] + scores[:-1]) / 2, [1.0]])


def test_a_threshold_of_val_has_the_best_balanced_accuracy_there() -> None:
    val = two_class_table("val")
    threshold = fit_thresholds(val, ClinicalUse())[YOUDEN]
    candidates = np.linspace(0.01, 0.99, 197)
    reached = [epoch_metrics(val.at_threshold(t).probabilities, val.labels)["balanced_accuracy"]
               for t in (threshold, *candidates)]  # fmt: skip
    assert reached[0] == max(reached)
    assert threshold > 0.7


@pytest.mark.parametrize("least", [0.8, 0.9, 0.95, 0.999])
@pytest.mark.parametrize("seed", range(3))
def test_fixed_sensitivity_and_specificity_equal_a_search_over_all_thresholds(
    least: float, seed: int
) -> None:
    val = two_class_table("val", seed, n=200)
    rates = np.array([rates_at(val, t) for t in every_threshold(val)])
    greatest = every_threshold(val)[rates[:, 0] >= least - 1e-12].max()
    smallest = every_threshold(val)[rates[:, 1] >= least - 1e-12].min()
    fitted = fit_thresholds(val, ClinicalUse(sensitivity=least, specificity=least))
    sensitive, specific = list(fitted.values())[1:3]
    assert sensitive == pytest.approx(greatest, abs=1e-12)
    assert specific == pytest.approx(smallest, abs=1e-12)


@pytest.mark.parametrize("threshold", [0.05, 0.2, 0.5])
def test_least_cost_equals_a_search_for_the_greatest_net_benefit(threshold: float) -> None:
    val = two_class_table("val", n=200)
    positive, odds = val.labels == 1, threshold / (1 - threshold)

    def benefit(t: float) -> float:
        above = val.probabilities[:, 1] > t
        return float((above & positive).mean() - (above & ~positive).mean() * odds)

    fitted = fit_thresholds(val, ClinicalUse(threshold=threshold))["least cost on val"]
    assert benefit(fitted) == pytest.approx(max(map(benefit, every_threshold(val))), abs=1e-12)


@pytest.mark.parametrize("prevalence", [0.05, 0.5, 0.9])
def test_a_stated_prevalence_weights_the_errors_on_val(prevalence: float) -> None:
    val = two_class_table("val", n=200)
    outcome = val.class_names[1]

    def errors(t: float) -> float:
        sensitivity, specificity = rates_at(val, t)
        return prevalence * (1 - sensitivity) + (1 - prevalence) * (1 - specificity)

    fitted = fit_thresholds(val, ClinicalUse(expected_prevalence={outcome: prevalence}))
    threshold = fitted[f"fewest errors on val, weighted to prevalence {prevalence:g}"]
    assert errors(threshold) == pytest.approx(min(map(errors, every_threshold(val))), abs=1e-12)
    assert len(fitted) == 1 + len(fit_thresholds(val, ClinicalUse()))


def test_a_stated_prevalence_is_of_one_outcome_only() -> None:
    use = USE | {"expected_prevalence": {"severe": 0.3}}
    val, test = (make_table(200, 4, split=split) for split in ("val", "test"))
    points = evaluate_thresholds(val, replace(test, meta={"clinical_use": use}), draws=20)
    weighted = {outcome: [rule for rule in rules if "weighted to prevalence 0.3" in rule]
                for outcome, rules in points.items()}  # fmt: skip
    assert len(weighted.pop("severe")) == 1
    assert not any(weighted.values())


def test_a_threshold_is_never_fitted_on_test() -> None:
    with pytest.raises(ValueError, match="test"):
        fit_thresholds(two_class_table("test"), ClinicalUse())


def test_equal_scores_are_decided_alike() -> None:
    table = two_class_table("val", n=6)
    rows = table.rows.assign(label=[0, 0, 1, 1, 1, 0])
    scores = np.array([0.0, 0.0, 0.0, 1.0, 1.0, 1.0])
    tied = PredictionTable(rows, np.stack([np.zeros(6), scores], axis=1), ["no", "yes"])
    assert 0.5 < fit_thresholds(tied, ClinicalUse())[YOUDEN] < 0.7311


def test_a_threshold_fitted_on_val_helps_where_the_larger_probability_favors_a_class() -> None:
    val, test = (two_class_table(split, seed) for split, seed in (("val", 0), ("test", 1)))
    points = evaluate_thresholds(val, test, draws=100)
    assert list(points) == ["yes"]
    larger, balanced, sensitive, specific, cheap = points["yes"].values()
    assert balanced["balanced_accuracy"].value > larger["balanced_accuracy"].value + 0.05
    assert 0.9 < sensitive["recall/yes"].value < 1
    assert 0.9 < specific["specificity/yes"].value < 1
    assert cheap["recall/yes"].value > balanced["recall/yes"].value
    assert larger["accuracy"] == compute_metrics(test, draws=100)["accuracy"]


def test_rates_on_test_of_a_group_of_classes_equal_counts_and_bayes_rule() -> None:
    val, test = (
        replace(make_table(400, 4, seed, split=split), meta={"clinical_use": USE})
        for seed, split in ((0, "val"), (1, "test"))
    )
    points = evaluate_thresholds(replace(val, meta={}), test, draws=50)  # test states the groups
    assert list(points) == ["severe", *test.class_names]
    rule = next(rule for rule in points["severe"] if "sensitivity 0.95" in rule)
    metrics, positive = points["severe"][rule], np.isin(test.labels, [2, 3])
    on_val, p = val.probabilities[:, 2:].sum(1), test.probabilities[:, 2:].sum(1)
    of_cases = np.sort(on_val[np.isin(val.labels, [2, 3])])
    at_least = of_cases[int(np.floor(0.05 * len(of_cases)))]  # 95 % of the cases are not below
    above = p > (at_least + on_val[on_val < at_least].max()) / 2
    sensitivity, specificity = above[positive].mean(), (~above)[~positive].mean()
    expected = {
        "recall/severe": sensitivity,
        "specificity/severe": specificity,
        "precision/severe": positive[above].mean(),
        "npv/severe": (~positive)[~above].mean(),
        "number_needed_to_refer/severe": above.sum() / (above & positive).sum(),
    }
    for share in (0.02, 0.3):
        hits, alarms = sensitivity * share, (1 - specificity) * (1 - share)
        correct, missed = specificity * (1 - share), (1 - sensitivity) * share
        expected[f"ppv_at_prevalence/severe/{share:g}"] = hits / (hits + alarms)
        expected[f"npv_at_prevalence/severe/{share:g}"] = correct / (correct + missed)
    for name, value in expected.items():
        estimate = metrics[name]
        assert estimate.value == pytest.approx(value, abs=1e-9), name
        assert estimate.low < estimate.value < estimate.high, name


def test_predictive_values_at_the_prevalence_of_the_table_are_the_observed_ones() -> None:
    table = make_table(300, 3)
    share = float((table.labels == 1).mean())
    use = {"prevalences": [share]}
    metrics = compute_metrics(replace(table, meta={"clinical_use": use}), draws=50)
    at = f"simple/{share:g}"
    assert metrics[f"ppv_at_prevalence/{at}"].value == pytest.approx(
        metrics["precision/simple"].value, abs=1e-12
    )
    assert metrics[f"npv_at_prevalence/{at}"].value == pytest.approx(
        metrics["npv/simple"].value, abs=1e-12
    )


def test_an_outcome_that_val_does_not_have_is_null_with_a_reason() -> None:
    val, test = make_table(90, 3, split="val"), make_table(90, 3, seed=1)
    val = val.take(np.flatnonzero(val.labels != 2))
    points = evaluate_thresholds(val, test, draws=20)
    fixed, *fitted = points["comminuted"].values()
    assert fixed["recall/comminuted"].value is not None
    assert len(fitted) == 4
    for metrics in fitted:
        assert metrics["recall/comminuted"].value is None
        assert metrics["recall/comminuted"].reason == NOT_FITTED
    assert all(m["recall/none"].value is not None for m in points["none"].values())


def test_the_first_outcome_of_a_report_has_a_table_of_its_own() -> None:
    val, test = (
        replace(make_table(90, 4, split=split), meta={"clinical_use": USE})
        for split in ("val", "test")
    )
    points = evaluate_thresholds(val, test, draws=20)
    tables = operating_point_tables(points, test)
    assert [table.heading for table in tables][:1] == ["Decision thresholds for severe"]
    assert [len(table.rows) for table in tables] == [5, 20, 25]
    values = tables[2]
    assert values.columns[1:3] == ("PPV at prevalence 2\u00a0%", "NPV at prevalence 2\u00a0%")
    assert values.rows[0][1] == points["severe"]["0.5"]["ppv_at_prevalence/severe/0.02"]
    assert operating_point_tables({}, test) == []
