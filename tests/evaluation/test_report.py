import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from evaluation import figures, metrics, report
from evaluation.auc import auc
from evaluation.intervals import Figure
from evaluation.results import Results, read_results, write_results
from tests.evaluation.tables import make


def _results() -> Results:
    good = Figure(0.9, 0.8, 0.95, "Wilson", 50, 50)
    absent = Figure(None, None, None, "DeLong", 50, 50, "class 'c' has no image")
    return Results(
        "council",
        "test",
        ["a", "b"],
        {"accuracy": good, "auroc": absent},
        others={"soft": {"accuracy": good}},
        measures={"latency_ratio_measured": None},
    )


def test_results_survive_their_file(tmp_path: Path) -> None:
    write_results(tmp_path / "results.json", _results())
    assert read_results(tmp_path / "results.json") == _results()


def test_results_refuse_nan_and_null_without_reason(tmp_path: Path) -> None:
    for wrong in (Figure(float("nan"), None, None, "x", 1, 1), Figure(None, None, None, "x", 1, 1)):
        with pytest.raises(ValueError, match="metrics: accuracy"):
            write_results(tmp_path / "r.json", replace(_results(), metrics={"accuracy": wrong}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"version": 1', '"version": 9', "schema and version"),
        ('"split"', '"spilt"', "spilt"),
        ("{", "[", "not JSON"),
    ],
)
def test_foreign_results_are_refused_by_name(tmp_path: Path, old: str, new: str, said: str) -> None:
    path = tmp_path / "results.json"
    write_results(path, _results())
    path.write_text(path.read_text().replace(old, new, 1))
    with pytest.raises(ValueError, match=f"results.json.*{said}"):
        read_results(path)


def test_a_report_is_one_file_that_asks_nothing_of_the_network(tmp_path: Path) -> None:
    table = make()
    found = metrics.figures(table, draws=20)
    sections = [
        report.lead("The council", "accuracy", found["accuracy"]),
        report.Text("Less than <b>all</b>."),
        report.figures_table(found),
        report.Gates([report.Gate("accuracy", ">= 0.9", "0.8", False)]),
        report.Picture(figures.confusion(table), "counts and shares"),
        report.Thumbnails([b"png"], ["one"]),
        report.Details({"seed": 0}),
    ]
    report.write_report(tmp_path / "report.html", "A title & more", sections)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http" not in page
    assert "A title &amp; more" in page
    assert "&lt;b&gt;all&lt;/b&gt;" in page
    assert '<td class="fail">fail</td>' in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_lead_carries_the_interval_and_the_counts() -> None:
    text = report.lead("The council", "accuracy", Figure(0.97, 0.955, 0.98, "Wilson", 1200, 300))
    assert text.body == (
        "The council reaches accuracy 0.9700 (95 % interval 0.9550 to 0.9800) "
        "on 1,200 images of 300 patients."
    )


def test_pictures_are_drawn() -> None:
    tables = {"a": make(), "b": make(seed=1)}
    history = pd.DataFrame({"epoch": [0, 1], "train/loss": [2, 1], "val/loss": [2.0, np.nan]})
    drawn = [
        figures.confusion(tables["a"]),
        figures.roc(tables["a"]),
        figures.roc(make(classes=2)),
        figures.roc_compared(tables),
        figures.reliability(tables),
        figures.learning_curves(history),
    ]
    assert all(report.to_png(d).startswith(b"\x89PNG") for d in drawn)
    texts = {t.get_text() for t in drawn[0].axes[0].texts}
    assert {str(v) for v in metrics.confusion(tables["a"]).ravel()} == texts


def test_the_same_predictions_give_the_same_picture() -> None:
    once, again = (report.to_png(figures.confusion(make())) for _ in range(2))
    assert once == again


def test_the_roc_picture_has_the_area_of_the_ranks() -> None:
    table = make(200, 2)
    positive = table.labels == 1
    fpr, tpr = figures.roc_curve(table.probabilities[:, 1], positive)
    area = np.trapezoid(tpr, fpr)
    assert area == pytest.approx(auc(table.probabilities[:, 1], positive))
