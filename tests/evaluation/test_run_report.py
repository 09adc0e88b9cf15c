from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation.metrics import registry
from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.registry import MetricSpec
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.reports.html import Text
from evaluation.reports.run import (
    anonymized_predictions,
    hashed_id,
    labeled_models,
    most_confident,
    predictions_frame,
    readable_details,
    run_sections,
    what_it_is,
)
from evaluation.results import Results
from evaluation.subgroups import compute_subgroups
from tests.evaluation.tables import make_table


def _two_classes(labels: list[int], first_probability: list[float]) -> PredictionTable:
    rows = pd.DataFrame({"id": list("abcde"), "label": labels, "split": "test",
                         "patient": "secret", "study": "s", "site": "private"})  # fmt: skip
    first = np.array(first_probability)
    return PredictionTable(rows, np.log(np.stack([first, 1 - first], axis=1)), ["well", "ill"])


@pytest.fixture
def table():
    """Five images of two classes; c and d are wrong, e has no label."""
    return _two_classes([0, 0, 1, 1, -1], [0.9, 0.6, 0.8, 0.7, 0.5001])


def test_predictions_are_listed_without_patients_and_attributes(table):
    frame = predictions_frame(table)
    assert frame["true"].tolist() == ["well", "well", "ill", "ill", "unknown"]
    assert frame["predicted"].tolist() == ["well"] * 5
    assert frame["correct"].tolist() == ["yes", "yes", "no", "no", "unknown"]
    assert frame["confidence"].tolist() == pytest.approx([0.9, 0.6, 0.8, 0.7, 0.5001], abs=1e-6)
    assert frame["p(ill)"].tolist() == pytest.approx([0.1, 0.4, 0.2, 0.3, 0.4999], abs=1e-6)
    assert "secret" not in frame.to_string()
    assert "private" not in frame.to_string()


def test_anonymized_predictions_have_a_hash_in_place_of_each_id(table):
    named = replace(table, rows=table.rows.assign(id=[f"secret/{k}.png" for k in range(5)]))
    frame = anonymized_predictions(named)
    assert "secret" in predictions_frame(named).to_string()
    assert "secret" not in frame.to_string()
    assert frame["id"].tolist() == [hashed_id(name) for name in named.rows["id"]]
    assert frame["id"].is_unique
    pd.testing.assert_frame_equal(
        frame.drop(columns="id"), predictions_frame(named).drop(columns="id")
    )


def test_the_most_confident_predictions_alternate_between_classes(table):
    assert most_confident(table, correct=True) == ["a", "b"]
    assert most_confident(table, correct=False, count=1) == ["c"]
    both_classes = _two_classes([0, 0, 1, 1, 0], [0.9, 0.8, 0.3, 0.2, 0.6])
    assert most_confident(both_classes, correct=True, count=4) == ["a", "d", "b", "c"]


def _page(sections: list[html.Section]) -> str:
    return "\n".join(html.section_html(section) for section in sections)


def test_a_metric_registered_in_one_place_is_in_the_run_report(monkeypatch):
    spec = MetricSpec(
        "certainty", "Mean certainty", "image_mean", lambda t: t.probabilities.max(axis=1),
        in_summary=True, meaning="Largest probability, on average.",
    )  # fmt: skip
    monkeypatch.setitem(registry.METRICS, "certainty", spec)
    table = make_table()
    metrics = compute_metrics(table, draws=20)
    results = Results("resnet", "test", table.class_names, metrics, {"member": metrics})
    page = _page(run_sections(results, table))
    value = table.probabilities.max(axis=1).mean()
    row = f'<tr><td>Mean certainty</td><td class="number">{value:.2f}<small>'
    assert page.count(row) == 2  # summary, and all metrics
    assert "<th class=number>Mean certainty</th>" in page  # of the members


def test_referral_and_prediction_sets_are_shown_if_val_is_given():
    test, val = make_table(), make_table(split="val", seed=1)
    results = Results("resnet", "test", test.class_names, compute_metrics(test, draws=20))
    headings = [section.heading for section in run_sections(results, test)]
    with_val = [section.heading for section in run_sections(results, test, val=val)]
    added = [heading for heading in with_val if heading not in headings]
    assert added[:3] == ["Referral", "Prediction sets", "Prediction sets by class"]
    with pytest.raises(ValueError, match="test"):  # nothing is fitted on test
        run_sections(results, test, val=test)


def test_members_of_an_ensemble_are_shown_calibrated_and_raw():
    table = make_table()
    metrics = compute_metrics(table, draws=20)
    others = {"a": metrics, "calibrated_member/a": metrics}
    results = Results("ensemble", "test", table.class_names, metrics, others)
    [members] = [s for s in run_sections(results, table) if s.heading == "Ensemble and members"]
    assert [row[0] for row in members.rows] == ["ensemble, calibrated", "a, calibrated", "a, raw"]
    assert list(labeled_models(replace(results, others={"a": metrics}))) == [
        "ensemble, raw",
        "a, raw",
    ]
    assert list(labeled_models(replace(results, others={}))) == ["ensemble"]


def test_details_of_a_run_have_no_names_of_code():
    meta = {"voter": {"name": "soft", "fitted_on": "d1"}, "tta": [], "manifest_digest": "d1"}
    page = html.section_html(
        html.Details(readable_details(Results("e", "test", [], {}, meta=meta)))
    )
    assert "Mean probability, fitted on validation" in page
    assert "hash of the table of samples" in page
    for raw in ("[]", "{", "soft", "manifest_digest", "tta"):
        assert raw not in page


def test_a_run_report_is_made_from_values_and_shows_labels_instead_of_names():
    table, history = make_table(), pd.DataFrame({"epoch": [0, 1], "val/accuracy": [0.5, 0.6]})
    metrics = compute_metrics(table, draws=20)
    meta = {"notes": ["a note"], "members": {}, "seed": 3}
    results = Results("resnet", "test", table.class_names, metrics, meta=meta)
    sections = run_sections(results, table, history, [Text("half of the weights", "Savings")])
    page = _page(sections)
    groups = compute_subgroups(make_table(300))
    page_of_groups = _page(run_sections(replace(results, subgroups=groups), table))
    assert "No difference between groups was shown (2 groups tested" in page_of_groups
    assert "<h2>Subgroups</h2>" in page_of_groups
    assert page.index("a note") < page.index("Savings") < page.index("Learning curves")
    assert "Quadratic kappa" in page
    assert "kappa_quadratic" not in page
    assert "<td>seed</td><td>3</td>" in page
    [curves] = [s.image for s in sections if s.heading == "Learning curves"]
    assert curves.axes[0].get_title(loc="left") == "Accuracy"


def test_an_ensemble_of_one_network_is_a_network():
    members = {"a": {}, "b": {}}
    run = Results("r", "test", ["x", "y"], {}, meta={"members": members})
    assert what_it_is(run) == "An ensemble of 2 networks"
    del members["b"]
    assert what_it_is(run) == "A network"
