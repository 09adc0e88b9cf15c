from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

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
