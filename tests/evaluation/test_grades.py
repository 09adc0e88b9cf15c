from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import cohen_kappa_score

from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports import comparison
from evaluation.reports.grades import misgrading_tables
from evaluation.reports.run import run_sections
from evaluation.results import Results
from tests.evaluation.tables import make_table

HEADING = "Misgradings by distance"


@pytest.fixture
def table():
    """Nine images with a label: two of the right grade, three too low, four too high."""
    labels, predictions = [0, 2, 1, 2, 3, 0, 0, 1, 0, -1], [0, 2, 0, 1, 0, 1, 1, 3, 3, 0]
    rows = pd.DataFrame({"id": list("abcdefghij"), "label": labels, "split": "test",
                         "patient": list("abcdefghij"), "study": "s"})  # fmt: skip
    return PredictionTable(rows, 3.0 * np.eye(4)[predictions], list("0123"))


def test_misgradings_are_counted_by_distance_and_direction(table):
    [counts] = misgrading_tables(table)
    assert counts.columns == ("distance", "images", "%", "graded too low", "graded too high")
    assert counts.rows == [
        ("0 grades", 2, pytest.approx(100 * 2 / 9), None, None),
        ("1 grade", 4, pytest.approx(100 * 4 / 9), 2, 2),
        ("2 grades", 1, pytest.approx(100 / 9), 0, 1),
        ("3 grades", 2, pytest.approx(100 * 2 / 9), 1, 1),
    ]


def test_classes_that_are_no_grades_have_no_distances(table):
    assert misgrading_tables(replace(table, class_names=list("abcd"))) == []


def test_the_median_grade_is_where_the_probabilities_reach_one_half(table):
    """The most probable grades of the first two rows are 0 and 3, their medians 1 and 2."""
    p = np.array([[0.4, 0.3, 0.2, 0.1], [0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1]])
    graded = table.take(np.arange(3)).with_probabilities(p)  # labels 0, 2, 1
    assert graded.predictions.tolist() == [0, 3, 0]
    assert graded.median_predictions.tolist() == [1, 2, 0]
    metrics = compute_metrics(graded, draws=20)
    values = {name: metrics[f"median_{name}"].value for name in ("accuracy", "within_one_grade")}
    assert values == {"accuracy": pytest.approx(1 / 3), "within_one_grade": 1.0}
    assert metrics["median_grade_error"].value == pytest.approx(2 / 3)
    kappa = cohen_kappa_score([0, 2, 1], [1, 2, 0], labels=range(4), weights="quadratic")
    assert metrics["median_kappa_quadratic"].value == pytest.approx(kappa)


def test_the_median_grade_of_certain_predictions_is_the_most_probable_one():
    table = replace(make_table(200, 4, gain=4.0), class_names=list("0123"))
    certain = replace(table, logits=60 * table.logits)
    assert np.array_equal(certain.median_predictions, certain.predictions)
    metrics = compute_metrics(certain, draws=200)
    for name in ("accuracy", "kappa_quadratic", "grade_error", "within_one_grade"):
        plain, of_median = metrics[name], metrics[f"median_{name}"]
        assert of_median.value == pytest.approx(plain.value)
        assert of_median.low == pytest.approx(plain.low, abs=0.02)
        assert of_median.high == pytest.approx(plain.high, abs=0.02)


def test_reports_show_misgradings_below_the_confusion_matrix():
    table = replace(make_table(classes=4), class_names=list("0123"))
    metrics = compute_metrics(table, draws=20)
    page = run_sections(Results("net", "test", table.class_names, metrics), table)
    headings = [section.heading for section in page]
    assert headings[headings.index("Confusion matrix") + 1] == HEADING
    tables = {"a": table, "b": table}
    page = comparison.comparison_sections(comparison.compare_models(tables, 20), tables, {})
    assert [s.heading for s in page if s.heading.startswith(HEADING)] == [
        f"{HEADING}: a",
        f"{HEADING}: b",
    ]
