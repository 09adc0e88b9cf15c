import math

import numpy as np
import pandas as pd
import pytest

from evaluation import pruned, sparsity
from evaluation.files import write_json
from evaluation.plots import sparse_figures
from evaluation.plots.sparse_figures import Arm
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.reports import run as run_report
from evaluation.stats import ratios
from evaluation.stats.estimate import Estimate

SAID = {
    "weights_zero_fraction": 0.6, "macs_theoretical_ratio": 0.4, "latency_ratio_measured": None,
    "layers": [{"name": "a", "shape": [8, 4], "numbers": 32, "kept": 8, "macs": 64,
                "macs_theoretical": 16}],
    "left_out": {"b": "sees the image"},
}  # fmt: skip


def table(decisions, labels):
    n = len(labels)
    rows = pd.DataFrame({"id": [f"i{i}" for i in range(n)], "label": labels, "split": "test",
                         "patient": [f"p{i}" for i in range(n)], "study": ""})  # fmt: skip
    return PredictionTable(rows, 4.0 * np.eye(2)[decisions], ["well", "ill"])


def test_macs_take_off_what_is_multiplied_by_zero():
    assert sparsity.macs(1000, [(100, 25, 4), (10, 10, 7)]) == 1000 - 75 * 4


def test_what_was_not_measured_is_not_called_saved():
    said = sparsity.sentence(SAID)
    assert "60.0 % of all weights are 0" in said
    assert "Nothing was measured to get faster" in said


def test_layers_have_their_densities():
    _, layers = sparsity.sections(SAID)
    assert layers.rows == [("a", "8 x 4", 8, 0.25, 64, 16)]
    assert "1 further weights" in layers.note


def test_every_changed_decision_is_listed_and_counted_by_class():
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    control, sparse = [0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1, 0]
    gap, classes, changed = sparsity.against_control(table(sparse, labels), table(control, labels))
    assert gap.rows[0][1].figure.value == pytest.approx(-1 / 8)
    plain = [(*row[:4], row[4].figure.value, *row[5:]) for row in classes.rows]
    assert plain == [("well", 4, 0.75, 1.0, 0.25, 0, 1), ("ill", 4, 0.75, 0.25, -0.5, 2, 0)]
    assert [row[0] for row in changed.rows] == ["i3", "i4", "i5"]
    assert changed.rows[0] == ("i3", "well", "ill", "well")
    assert "3 of 8" in changed.note


def test_the_change_of_a_sensitivity_has_the_interval_of_a_paired_difference():
    """Of 50 pictures of the class 15 are lost and 5 gained: a gap of -0.2."""
    labels, control = [0] * 50 + [1] * 50, [0] * 50 + [1] * 40 + [0] * 10
    sparse = [0] * 50 + [0] * 15 + [1] * 25 + [1] * 5 + [0] * 5
    _, classes, _ = sparsity.against_control(table(sparse, labels), table(control, labels))
    same, change = (row[4].figure for row in classes.rows)
    error = math.sqrt((20 / 50 - 0.2**2) / 50)  # of a mean of 15 times -1, 5 times 1
    ends = [-0.2 - 1.96 * error, -0.2 + 1.96 * error]
    assert change.value == pytest.approx(-0.2)
    assert [change.low, change.high] == pytest.approx(ends, abs=0.02)
    assert (change.n, change.patients) == (50, 50)
    assert (same.value, same.low, same.high) == (0, 0, 0)  # what both said is the same
    page = html.html_of(classes)
    assert f"-0.2000<small>{change.low:+.4f} to {change.high:+.4f}</small>" in page


def test_a_class_without_an_image_has_a_dash_and_the_reason():
    _, classes, _ = sparsity.against_control(table([0, 0], [0, 0]), table([0, 1], [0, 0]))
    assert classes.rows[1] == ("ill", 0, None, None, None, 0, 0)
    assert "ill: no image." in classes.note
    assert "<td>ill</td>" in html.html_of(classes)
    assert html.html_of(classes).count("&ndash;") == 3


def test_all_changed_decisions_are_kept_where_not_all_are_listed():
    n = sparsity.LISTED + 1
    control, sparse = table([0] * n, [0] * (n - 1) + [-1]), table([1] * n, [0] * (n - 1) + [-1])
    *_, listed = sparsity.against_control(sparse, control)
    assert len(listed.rows) == sparsity.LISTED
    said = f"{n} of {n} decisions changed; the first {n - 1} are listed"
    assert listed.note == f"{said}, changed.csv holds all of them."
    every = sparsity.decisions(sparse, control)
    assert every["id"].tolist() == [f"i{i}" for i in range(n)]
    assert every.iloc[-1][["label", "control_said", "sparse_said"]].tolist() == [
        "unknown", "well", "ill"]  # fmt: skip
    sure = math.exp(4) / (math.exp(4) + 1)
    assert np.allclose(every[["control_probability", "sparse_probability"]], sure)


def test_the_picture_of_all_arms_has_points_intervals_and_a_zero_line():
    whole = Estimate(-0.01, -0.02, 0.005, "known", 9, 9)
    arms = [Arm("ast25", "dense", 0.742, [-0.03, 0.01], whole),
            Arm("single10", "dense", None, [-0.04], None)]  # fmt: skip
    [axes] = sparse_figures.costs(arms).axes
    zero, small, line, large, alone = (line.get_xydata().tolist() for line in axes.lines)
    assert [x for x, _ in zero] == [0, 0]
    assert [x for x, _ in small] == pytest.approx([-3, 1])
    assert line == [pytest.approx([-2, 0]), pytest.approx([0.5, 0])]
    assert large == [pytest.approx([-1, 0])]
    assert [x for x, _ in alone] == pytest.approx([-4])
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        "ast25, 74.2 % zeros\nminus dense", "single10, zeros not known\nminus dense"]  # fmt: skip


def test_the_run_report_shows_it(tmp_path):
    assert sparsity.of_run(tmp_path, table([0], [0])) == []
    html.write_report(tmp_path / "r.html", "x", sparsity.sections(SAID))
    assert "Pruned layers" in (tmp_path / "r.html").read_text()


def test_a_run_stands_beside_the_control_that_it_names(tmp_path):
    run, control = tmp_path / "run", tmp_path / "control"
    labels = [0, 0, 1, 1]
    write_json(run / "sparsity.json", SAID | {"control": "../control"})
    sparse = table([0, 1, 1, 0], labels)
    missing = sparsity.of_run(run, sparse)[-1]
    assert "Not set beside control ../control" in missing.body
    table([0, 0, 1, 1], labels).write(control / "predictions/test.parquet")
    *_, gap, classes, changed = sparsity.of_run(run, sparse)
    assert gap.rows[0][1].figure.value == -0.5
    assert classes.columns[2:4] == ("control", "sparse")
    assert [row[0] for row in changed.rows] == ["i1", "i3"]
    run_report.write_changed(run, sparse)
    assert pd.read_csv(run / "changed.csv")["id"].tolist() == ["i1", "i3"]
    (control / "predictions/test.parquet").unlink()
    run_report.write_changed(run, sparse)
    assert not (run / "changed.csv").exists()  # not what an earlier control said
    write_json(run / "sparsity.json", SAID)
    assert len(sparsity.of_run(run, sparse)) == 2


PRUNED = {
    "macs_theoretical_ratio": 0.58, "weights_zero_fraction": 0.0, "latency_ratio_measured": 0.625,
    "energy_ratio_measured": None, "parameters": 6, "parameters_dense": 8, "dense": "../dense",
    "latency": {"1": {"value": 0.625, "low": 0.5, "high": 0.8, "method": "m", "n": 3,
                      "patients": 0, "reason": ""}},
    "energy": {"value": None, "low": None, "high": None, "method": "m", "n": 0, "patients": 0,
               "reason": "energy: no counter"},
    "machine": "2 threads", "layers": [{"name": "c", "in": 3, "in_left": 3, "out": 64,
                                        "out_left": 48}],
}  # fmt: skip


def test_a_pruned_run_says_what_got_faster_and_what_was_not_measured(tmp_path):
    assert "1.60 times as fast (1.25 to 2.00)" in pruned.sentence(PRUNED)
    _, measured, layers = pruned.sections(PRUNED)
    assert measured.rows[-1][1].value is None
    assert "energy: no counter" in measured.note
    assert layers.rows == [("c", 3, 3, 64, 48)]
    assert run_report.measures(tmp_path) == {}
    write_json(tmp_path / "run/pruning.json", PRUNED)
    assert run_report.measures(tmp_path / "run")["latency_ratio_measured"] == 0.625
    table([1, 1], [1, 1]).write(tmp_path / "dense/predictions/test.parquet")
    *_, gap, _, changed = pruned.of_run(tmp_path / "run", table([0, 1], [1, 1]))
    assert gap.columns[1] == "accuracy, pruned minus dense"
    assert changed.columns[2:] == ("dense", "pruned")


def test_a_ratio_is_a_median_of_pairs_with_its_interval():
    figure = ratios.paired([(2.0, 4.0)] * 7)
    assert (figure.value, figure.low, figure.high, figure.n) == (0.5, 0.5, 0.5, 7)
    figure = ratios.paired([(1.0, 1.0), (3.0, 1.0), (2.0, 1.0)])
    assert (figure.low, figure.value, figure.high) == (1.0, 2.0, 3.0)
    assert ratios.paired([]).reason == "no pair was measured"
