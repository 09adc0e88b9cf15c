import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from sklearn.metrics import roc_auc_score

from evaluation.metrics import compute
from evaluation.metrics.calibration import reliability_bins
from evaluation.plots import curves, ensemble
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.stats.auc import auc
from evaluation.stats.estimate import Estimate, wilson_interval
from tests.evaluation.tables import make_table


def test_a_report_is_one_file_that_asks_nothing_of_the_network(tmp_path: Path) -> None:
    table = make_table()
    found = compute.compute_metrics(table, draws=20)
    sections = [
        html.lead_sentence("The ensemble", "accuracy", found["accuracy"]),
        html.Text("Less than <b>all</b>."),
        html.metrics_table(found),
        html.Gates([html.Gate("accuracy", ">= 0.9", "0.8", False)]),
        html.Plot(curves.confusion_plot(table), "counts and shares"),
        html.Thumbnails([b"png"], ["one"]),
        html.Details({"seed": 0}),
    ]
    html.write_report(tmp_path / "report.html", "A title & more", sections)
    page = (tmp_path / "report.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)', page)
    assert "http" not in page
    assert "A title &amp; more" in page
    assert "&lt;b&gt;all&lt;/b&gt;" in page
    assert '<td class="fail">fail</td>' in page
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]


def test_the_lead_carries_the_interval_and_the_counts() -> None:
    text = html.lead_sentence(
        "The ensemble", "accuracy", Estimate(0.97, 0.955, 0.98, "Wilson", 1200, 300)
    )
    assert text.body == (
        "The ensemble reaches accuracy 0.9700 (95 % interval 0.9550 to 0.9800) "
        "on 1,200 images of 300 patients."
    )


def lines(axes: Axes) -> dict[str, list[list[float]]]:
    """The named lines of a panel as points."""
    named = {str(line.get_label()): line.get_xydata() for line in axes.lines}
    return {name: points.tolist() for name, points in named.items() if not name.startswith("_")}


def test_a_confusion_shows_its_counts() -> None:
    drawn = curves.confusion_plot(make_table())
    texts = [int(t.get_text()) for t in drawn.axes[0].texts]
    assert texts == compute.confusion_matrix(make_table()).ravel().tolist()
    assert html.render_png(drawn).startswith(b"\x89PNG")


@pytest.mark.parametrize(("classes", "shown"), [(2, [1]), (3, [0, 1, 2])])
def test_a_roc_has_one_curve_a_class_named_with_its_area(classes: int, shown: list[int]) -> None:
    table = make_table(classes=classes)
    found = lines(curves.roc_plot(table).axes[0])
    areas = [roc_auc_score(table.labels == k, table.probabilities[:, k]) for k in shown]
    names = [f"{table.class_names[k]}  {area:.4f}" for k, area in zip(shown, areas, strict=True)]
    assert list(found) == names
    assert all((points[0], points[-1]) == ([0, 0], [1, 1]) for points in found.values())


def test_models_are_compared_under_their_names() -> None:
    tables = {"a": make_table(), "b": make_table(seed=1)}
    areas = [
        roc_auc_score(t.labels, t.probabilities, multi_class="ovr", average="macro")
        for t in tables.values()
    ]
    drawn = lines(curves.roc_comparison(tables).axes[0])
    assert list(drawn) == [f"a  {areas[0]:.4f}", f"b  {areas[1]:.4f}"]
    panels = curves.reliability_plot(tables).axes
    assert [panel.get_title(loc="left").split()[0] for panel in panels] == ["a", "b"]


def test_learning_curves_skip_what_an_epoch_did_not_measure() -> None:
    history = pd.DataFrame({"epoch": [0, 1], "train/loss": [2, 1], "val/loss": [2.0, np.nan]})
    [panel] = curves.learning_curves(history).axes
    assert lines(panel) == {"train": [[0, 2], [1, 1]], "val": [[0, 2]]}


def bars(table: PredictionTable) -> list[list[float]]:
    """Both ends of each bar of the picture of reliability."""
    drawn = curves.reliability_plot({"": table}).axes[0]
    (found,) = (c for c in drawn.collections if isinstance(c, LineCollection))
    return [segment[:, 1].tolist() for segment in found.get_segments()]


def test_bars_of_a_bin_without_errors_are_wilsons() -> None:
    table = make_table(400, gain=0.0)
    right = replace(table, logits=table.logits + 20 * np.eye(3)[table.labels])
    bins = reliability_bins(right.probabilities, right.labels)
    assert (bins.accuracy == 1).all()
    assert bars(right) == [pytest.approx(wilson_interval(n, n)) for n in bins.count]


def test_bars_of_a_bin_count_patients_and_not_films() -> None:
    one = make_table(400)
    again, names = np.repeat(np.arange(400), 4), [f"film{i}" for i in range(1600)]
    rows = one.rows.iloc[again].reset_index(drop=True).assign(id=names)
    same = replace(one, rows=rows, logits=one.logits[again])  # four films of a patient, all alike
    apart = replace(same, rows=rows.assign(patient=names))
    widths = [np.diff(bars(table)).ravel() for table in (one, same, apart)]
    np.testing.assert_allclose(widths[1], widths[0], rtol=0.25)  # BCa beside Wilson
    assert np.median(widths[1] / widths[2]) > 1.5


def test_a_recall_of_zero_is_drawn_and_one_that_is_absent_is_not() -> None:
    def member(*recalls: float | None) -> dict[str, Estimate]:
        return {f"recall/{name}": Estimate(value, None, None, "none", 9, 9)
                for name, value in zip("abc", recalls, strict=True)}  # fmt: skip

    found = {"one": member(0.0, 0.5, None), "two": member(0.25, 0.0, None)}
    first, second, *rings = ensemble.recall_plot(found, list("abc")).axes[0].lines
    np.testing.assert_array_equal(first.get_ydata(), [0.0, 0.5, np.nan])
    np.testing.assert_array_equal(second.get_ydata(), [0.25, 0.0, np.nan])
    assert [ring.get_ydata()[0] for ring in rings] == [0.25, 0.5]


def test_the_same_predictions_give_the_same_picture() -> None:
    once, again = (html.render_png(curves.confusion_plot(make_table())) for _ in range(2))
    assert once == again


def test_the_roc_picture_has_the_area_of_the_ranks() -> None:
    table = make_table(200, 2)
    positive = table.labels == 1
    fpr, tpr = curves.roc_curve(table.probabilities[:, 1], positive)
    area = np.trapezoid(tpr, fpr)
    assert area == pytest.approx(auc(table.probabilities[:, 1], positive))
