from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation.plots.style import panels
from evaluation.predictions import PredictionTable
from evaluation.reports.answers import answers, code, shared, surest
from evaluation.reports.html import Text
from evaluation.reports.inline import look
from evaluation.run_folder import ExperimentFolder, voters_of


@pytest.fixture
def table():
    """Five images of two classes; c and d are mistaken, e is of an unknown class."""
    odds = np.array([0.9, 0.6, 0.8, 0.7, 0.5001])
    rows = pd.DataFrame({"id": list("abcde"), "label": [0, 0, 1, 1, -1], "split": "test",
                         "patient": "secret", "study": "s", "site": "here"})  # fmt: skip
    return PredictionTable(rows, np.log(np.stack([odds, 1 - odds], axis=1)), ["well", "ill"])


def test_answers_say_truth_answer_and_confidence_and_no_patient(table):
    found = answers(table)
    assert found["true"].tolist() == ["well", "well", "ill", "ill", "unknown"]
    assert found["says"].tolist() == ["well"] * 5
    assert found["right"].tolist() == ["yes", "yes", "no", "no", "unknown"]
    assert found["confidence"].tolist() == pytest.approx([0.9, 0.6, 0.8, 0.7, 0.5001], abs=1e-6)
    assert found["p(ill)"].tolist() == pytest.approx([0.1, 0.4, 0.2, 0.3, 0.4999], abs=1e-6)
    assert "secret" not in found.to_string()
    assert "here" not in found.to_string()


def test_what_is_shared_has_a_code_for_each_id(table):
    named = replace(table, rows=table.rows.assign(id=[f"secret/{k}.png" for k in range(5)]))
    found = shared(named)
    assert "secret" in answers(named).to_string()
    assert "secret" not in found.to_string()
    assert found["id"].tolist() == [code(name) for name in named.rows["id"]]
    assert found["id"].is_unique
    pd.testing.assert_frame_equal(found.drop(columns="id"), answers(named).drop(columns="id"))


def test_the_surest_take_turns_among_the_classes(table):
    assert surest(table, right=True) == ["a", "b"]
    assert surest(table, right=False, count=1) == ["c"]
    odds = np.array([0.9, 0.8, 0.3, 0.2, 0.6])
    both = PredictionTable(table.rows.assign(label=[0, 0, 1, 1, 0]),
                           np.log(np.stack([odds, 1 - odds], axis=1)), ["well", "ill"])  # fmt: skip
    assert surest(both, right=True, count=4) == ["a", "d", "b", "c"]


def test_a_study_folder_knows_its_runs(tmp_path):
    for name in ("members/b", "members/a", "ensemble"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "results.json").touch()
    (tmp_path / "ensemble/ensemble.json").touch()
    (tmp_path / "members/unfinished").mkdir()
    study = ExperimentFolder(tmp_path)
    assert (study.members, study.ensembles) == (["a", "b"], ["ensemble"])
    assert study.first == study.run("ensemble") == tmp_path / "ensemble"
    assert study.config("a") == str(tmp_path / "members/a/config.yaml")
    with pytest.raises(ValueError, match="no run 'c'; there are a, b, ensemble"):
        study.run("c")
    with pytest.raises(ValueError, match="no finished member"):
        ExperimentFolder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("ensemble", "voters"),
    [
        ("ensemble", "voters"),
        ("ensemble-all_7", "voters-all_7"),
        ("ensemble-seed0-fold1", "voters-seed0-fold1"),
        ("chosen", "voters"),
    ],
)
def test_each_ensemble_has_voters_of_its_own(ensemble, voters):
    assert voters_of(Path("runs/x") / ensemble) == Path("runs/x") / voters


def test_sections_and_drawings_are_shown_in_a_notebook():
    shown = look(Text("A < B"), panels(2, 2)[0])._repr_html_()
    assert "<p>A &lt; B</p>" in shown
    assert 'src="data:image/png;base64,' in shown
