"""Net benefit and decision curves against the closed form; settings of the clinical use."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation.metrics.clinical import (
    ClinicalUse,
    clinical_use,
    decision_curve,
    outcome_table,
    shown_outcomes,
)
from evaluation.metrics.compute import compute_metrics
from evaluation.plots.clinical import decision_curve_plot
from evaluation.predictions import PredictionTable, align
from evaluation.reports import clinical
from evaluation.stats.paired_tests import holm_corrected, paired_differences
from tests.evaluation.tables import make_table, two_class_table

USE = {"class_groups": {"severe": ["comminuted", "other"]}, "threshold": 0.25}


def table_of(seed: int = 0, gain: float = 1.5, n: int = 400) -> PredictionTable:
    table = make_table(n, 4, seed, gain, images_per_patient=4)
    return replace(table, meta={"clinical_use": USE})


def net_benefit(p: np.ndarray, positive: np.ndarray, t: float) -> float:
    """TP / n - FP / n * t / (1 - t), as published by Vickers and Elkin (2006)."""
    treated, n = p >= t, len(p)
    return (treated & positive).sum() / n - (treated & ~positive).sum() / n * t / (1 - t)


def scores(table: PredictionTable, outcome: str) -> tuple[np.ndarray, np.ndarray]:
    """Probability of an outcome and whether it is true, by adding up probabilities."""
    classes = {"severe": [2, 3], **{name: [c] for c, name in enumerate(table.class_names)}}
    of = classes[outcome]
    return table.probabilities[:, of].sum(axis=1), np.isin(table.labels, of)


@pytest.mark.parametrize("outcome", ["severe", "none", "simple", "comminuted", "other"])
def test_net_benefit_equals_the_closed_form(outcome: str) -> None:
    table = table_of()
    metrics, (p, positive) = compute_metrics(table, draws=50), scores(table, outcome)
    treat_all = positive.mean() - (1 - positive.mean()) * 0.25 / 0.75
    benefit = metrics[f"net_benefit/{outcome}"]
    assert benefit.value == pytest.approx(net_benefit(p, positive, 0.25), abs=1e-12)
    over_all = metrics[f"net_benefit_over_all/{outcome}"].value
    assert over_all == pytest.approx(benefit.value - treat_all, abs=1e-12)
    curve = decision_curve(table, outcome, draws=50)
    expected = [net_benefit(p, positive, t) for t in curve.x]
    np.testing.assert_allclose(curve.value, expected, atol=1e-12)
    [dotted] = [
        line for line in decision_curve_plot({"": table}, [outcome]).axes[0].lines
        if line.get_label() == "treat all"
    ]  # fmt: skip
    shares = positive.mean() - (1 - positive.mean()) * curve.x / (1 - curve.x)
    np.testing.assert_allclose(dotted.get_ydata(), shares, atol=1e-12)
    assert (curve.low < curve.value).all()
    assert (curve.value < curve.high).all()


def test_a_curve_at_the_stated_threshold_is_the_metric_with_its_interval() -> None:
    table = replace(table_of(), meta={"clinical_use": {"threshold": 0.05}})
    metric = compute_metrics(table, draws=200)["net_benefit/simple"]
    curve = decision_curve(table, "simple", draws=200)
    assert curve.value[0] == pytest.approx(metric.value, abs=1e-12)
    assert (curve.low[0], curve.high[0]) == pytest.approx((metric.low, metric.high), abs=1e-6)


def test_copies_of_images_of_a_patient_do_not_narrow_an_interval() -> None:
    table = table_of(n=120)
    rows = [table.rows.assign(id=table.rows["id"] + f"copy{at}") for at in range(4)]
    copies = PredictionTable(
        pd.concat(rows), np.tile(table.logits, (4, 1)), table.class_names, table.meta
    )
    once, four = (compute_metrics(t, draws=400)["net_benefit/severe"] for t in (table, copies))
    assert four.high - four.low == pytest.approx(once.high - once.low, rel=0.01)


def test_the_difference_of_two_models_is_paired() -> None:
    good, bad = align([table_of(0, 2.5), table_of(1, 0.5)])
    difference = paired_differences(good, bad, draws=300)["net_benefit/severe"]
    values = [compute_metrics(t, draws=20)["net_benefit/severe"].value for t in (good, bad)]
    assert difference.estimate.value == pytest.approx(values[0] - values[1], abs=1e-12)
    assert difference.estimate.low > 0
    assert difference.p_value < 0.05
    curve = decision_curve(good, "severe", bad, draws=300)
    one, other = (decision_curve(t, "severe", draws=20).value for t in (good, bad))
    np.testing.assert_allclose(curve.value, one - other, atol=1e-12)
    itself = decision_curve(good, "severe", good, draws=50)
    assert not itself.value.any()


def test_differences_of_each_class_are_in_the_report_of_a_comparison() -> None:
    tables = {"good": table_of(0, 2.5, 80), "bad": table_of(1, 0.5, 80)}
    differences = holm_corrected({"good & bad": paired_differences(*tables.values(), draws=50)})
    table, *plots = clinical.difference_sections(tables, differences)
    assert [row[0] for row in table.rows][:2] == ["severe: good & bad", "none: good & bad"]
    expected = differences["good & bad"]["net_benefit/severe"].estimate
    assert table.rows[0][1].estimate == expected
    assert len(plots) == 2  # three outcomes in each plot
    title = plots[0].image.axes[0].get_title(loc="left")
    assert title == "severe"


def test_an_absent_class_is_null_with_a_reason_and_has_no_curve() -> None:
    table = table_of()
    table = table.take(np.flatnonzero(table.labels != 1))
    metrics = compute_metrics(table, draws=20)
    for name in ("net_benefit", "net_benefit_over_all", "calibration_slope"):
        assert metrics[f"{name}/simple"].value is None
        assert "no image has the outcome" in metrics[f"{name}/simple"].reason
        assert metrics[f"{name}/severe"].value is not None
    assert decision_curve(table, "simple", draws=20) is None
    assert clinical.outcome_table(metrics, table).rows[2][0] == "simple"
    assert len(clinical.decision_curves({"": table})) == 2  # the plot says so


def test_of_two_classes_the_second_is_shown() -> None:
    table = two_class_table("test")
    assert shown_outcomes(table) == ["yes"]
    assert outcome_table(table, "yes") is table
    mirrored = outcome_table(table, "no")
    np.testing.assert_allclose(mirrored.probabilities[:, 1], table.probabilities[:, 0], atol=1e-6)
    assert (mirrored.labels == 1 - table.labels).all()


def test_unknown_labels_remain_unknown_in_a_table_of_one_outcome() -> None:
    table = table_of(n=40)
    rows = table.rows.assign(label=np.where(np.arange(40) < 8, -1, table.labels))
    binary = outcome_table(replace(table, rows=rows), "severe")
    assert (binary.labels[:8] == -1).all()
    assert (binary.labels[8:] == np.isin(table.labels[8:], [2, 3])).all()
    assert binary.class_names == ["not severe", "severe"]


def test_models_are_compared_by_the_use_that_the_baseline_states() -> None:
    one, other = table_of(0, n=80), replace(table_of(1, n=80), meta={})
    assert "net_benefit/severe" in paired_differences(other, one, draws=20)
    assert "net_benefit/severe" not in paired_differences(one, other, draws=20)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"treshold": 0.2}, "'treshold'; allowed: class_groups, threshold"),
        ({"threshold": 0}, "threshold: 0 must be between 0 and 1"),
        ({"prevalences": [0.1, 2]}, r"prevalences: \[0.1, 2\] must be between 0 and 1"),
        ({"thresholds": [0.5, 0.1]}, r"thresholds: \[0.5, 0.1\]; two, lower one first"),
        ({"expected_prevalence": {"0": 1}}, r"expected_prevalence: \[1\] must be between 0 and 1"),
        ({"expected_prevalence": {"ill": 0.3}}, r"expected_prevalence: 'ill'; allowed: \['0'"),
        ({"class_groups": {"ill": ["x"]}}, r"class_groups: ill: \['x'\]; needs"),
        ({"class_groups": {"ill": ["0", "1", "2"]}}, "class_groups: ill: .*some but not all"),
        ({"class_groups": {"0": ["1", "2"]}}, "class_groups: 0"),
        ({"class_groups": {"ill": ["1", "1"]}}, "class_groups: ill"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=f"clinical_use: {message}"):
        clinical_use(settings, ["0", "1", "2"])


def test_grades_may_be_given_as_numbers() -> None:
    use = clinical_use({"class_groups": {"referable": [2, 3]}}, ["0", "1", "2", "3"])
    assert use.class_groups == {"referable": ["2", "3"]}
    assert clinical_use(None, ["0", "1"]) == ClinicalUse()
    assert ClinicalUse(threshold=0.1).false_alarms_per_case == pytest.approx(9)
