"""The first screen of a report says what was measured, in percent where a percent is meant."""

from dataclasses import replace

import numpy as np

from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.operating_points import evaluate_thresholds
from evaluation.predictions import PredictionTable
from evaluation.reports.html import format_percent
from evaluation.reports.overview import overview
from tests.evaluation.tables import make_table

USE = {"clinical_use": {"class_groups": {"fracture": ["simple", "comminuted"]}}}


def tables() -> tuple[PredictionTable, PredictionTable]:
    val, test = (
        make_table(240, seed=seed, split=split, images_per_patient=2)
        for seed, split in enumerate(("val", "test"))
    )
    return val, replace(test, meta=USE)


def test_the_first_screen_has_the_measured_values_and_what_limits_them() -> None:
    val, test = tables()
    metrics, points = compute_metrics(test, draws=100), evaluate_thresholds(val, test, draws=100)
    answers = overview("A network", metrics, test, points, ["Worse for x."], ["A note."]).answers
    assert answers["What is it?"] == ["A network that answers none, simple or comminuted."]
    good = "\n".join(answers["How good is it for fracture?"])
    assert f"Accuracy {format_percent(metrics['accuracy'])}" in good
    assert f"AUROC {metrics['auroc/fracture'].value:.3f} (" in good
    assert f"Calibration slope {metrics['calibration_slope/fracture'].value:.3f} (" in good
    of_all = metrics["net_benefit/fracture"].value - metrics["net_benefit_over_all/fracture"].value
    assert f"treating everyone has {of_all:.3f}" in good
    rule = next(name for name in points["fracture"] if "sensitivity" in name)
    recall = points["fracture"][rule]["recall/fracture"]
    assert f"Above the probability {rule}: finds {format_percent(recall)} of fracture" in good
    is_fracture = np.isin(test.labels, [1, 2])
    shares = answers["Measured on whom?"]
    assert shares == [f"240 images of 120 patients of the test split; fracture in "
                      f"{100 * is_fracture.mean():.1f} %."]  # fmt: skip
    assert answers["For whom is it worse?"] == ["Worse for x."]
    without = len(set(test.patients[~is_fracture]))
    assert f"{without} patients without fracture; 100 or more are advised." in answers[
        "What limits it?"]  # fmt: skip
    assert answers["What limits it?"][-1] == "A note."


def test_what_was_not_measured_has_its_reason() -> None:
    _, test = tables()
    perfect = replace(test, logits=9.0 * test.one_hot_labels)
    metrics = compute_metrics(perfect, draws=20)
    good = "\n".join(overview("A network", metrics, perfect, {}).answers[
        "How good is it for fracture?"])  # fmt: skip
    reason = metrics["calibration_slope/fracture"].reason
    assert f"Calibration slope not measured: {reason}." in good
