from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from evaluation.plots.style import subplots
from evaluation.predictions import PredictionTable
from evaluation.reports.html import Text, show
from evaluation.reports.run import (
    anonymized_predictions,
    hashed_id,
    most_confident,
    predictions_frame,
)


@pytest.fixture
def table():
    """Five images of two classes; c and d are mistaken, e is of an unknown class."""
    odds = np.array([0.9, 0.6, 0.8, 0.7, 0.5001])
    rows = pd.DataFrame({"id": list("abcde"), "label": [0, 0, 1, 1, -1], "split": "test",
                         "patient": "secret", "study": "s", "site": "here"})  # fmt: skip
    return PredictionTable(rows, np.log(np.stack([odds, 1 - odds], axis=1)), ["well", "ill"])


def test_answers_say_truth_answer_and_confidence_and_no_patient(table):
    found = predictions_frame(table)
    assert found["true"].tolist() == ["well", "well", "ill", "ill", "unknown"]
    assert found["predicted"].tolist() == ["well"] * 5
    assert found["correct"].tolist() == ["yes", "yes", "no", "no", "unknown"]
    assert found["confidence"].tolist() == pytest.approx([0.9, 0.6, 0.8, 0.7, 0.5001], abs=1e-6)
    assert found["p(ill)"].tolist() == pytest.approx([0.1, 0.4, 0.2, 0.3, 0.4999], abs=1e-6)
    assert "secret" not in found.to_string()
    assert "here" not in found.to_string()


def test_what_is_shared_has_a_code_for_each_id(table):
    named = replace(table, rows=table.rows.assign(id=[f"secret/{k}.png" for k in range(5)]))
    found = anonymized_predictions(named)
    assert "secret" in predictions_frame(named).to_string()
    assert "secret" not in found.to_string()
    assert found["id"].tolist() == [hashed_id(name) for name in named.rows["id"]]
    assert found["id"].is_unique
    pd.testing.assert_frame_equal(
        found.drop(columns="id"), predictions_frame(named).drop(columns="id")
    )


def test_the_surest_take_turns_among_the_classes(table):
    assert most_confident(table, correct=True) == ["a", "b"]
    assert most_confident(table, correct=False, count=1) == ["c"]
    odds = np.array([0.9, 0.8, 0.3, 0.2, 0.6])
    both = PredictionTable(table.rows.assign(label=[0, 0, 1, 1, 0]),
                           np.log(np.stack([odds, 1 - odds], axis=1)), ["well", "ill"])  # fmt: skip
    assert most_confident(both, correct=True, count=4) == ["a", "d", "b", "c"]


def test_sections_and_drawings_are_shown_in_a_notebook():
    shown = show(Text("A < B"), subplots(2, 2)[0])._repr_html_()
    assert "<p>A &lt; B</p>" in shown
    assert 'src="data:image/png;base64,' in shown
