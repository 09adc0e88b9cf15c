import math

import numpy as np
import pandas as pd
import pytest

from evaluation import sparsity
from evaluation.files import write_json
from evaluation.plots import curves
from evaluation.plots.curves import SparsityCost
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.reports import run as run_report
from evaluation.stats.estimate import Estimate

SPARSITY = {
    "weights_zero_fraction": 0.6, "macs_theoretical_ratio": 0.4, "latency_ratio_measured": None,
    "layers": [{"name": "a", "shape": [8, 4], "size": 32, "nonzeros": 8, "macs": 64,
                "macs_theoretical": 16}],
    "excluded": {"b": "first layer"},
}  # fmt: skip
PRUNING = {
    "macs_theoretical_ratio": 0.58, "weights_zero_fraction": 0.0, "latency_ratio_measured": 0.625,
    "energy_ratio_measured": None, "parameters": 6, "parameters_dense": 8, "dense": "../dense",
    "latency": {"1": {"value": 0.625, "low": 0.5, "high": 0.8, "method": "m", "n": 3,
                      "patients": 0, "reason": ""}},
    "energy": {"value": None, "low": None, "high": None, "method": "m", "n": 0, "patients": 0,
               "reason": "energy: no counter"},
    "machine": "2 threads", "layers": [{"name": "c", "in": 3, "in_left": 3, "out": 64,
                                        "out_left": 48}],
}  # fmt: skip


def table(predictions, labels):
    n = len(labels)
    rows = pd.DataFrame({"id": [f"i{i}" for i in range(n)], "label": labels, "split": "test",
                         "patient": [f"p{i}" for i in range(n)], "study": ""})  # fmt: skip
    return PredictionTable(rows, 4.0 * np.eye(2)[predictions], ["well", "ill"])


def test_theoretical_macs_exclude_multiplications_by_pruned_weights():
    assert sparsity.theoretical_macs(1000, [(100, 25, 4), (10, 10, 7)]) == 1000 - 75 * 4


def test_sparsity_is_not_called_a_speedup():
    sentence = sparsity.sparsity_sentence(SPARSITY)
    assert "60.0 % of all weights are 0" in sentence
    assert "No speedup and no energy saving was measured" in sentence


def test_layers_have_their_density():
    _, layers = sparsity.describe_sparsity(SPARSITY)
    assert layers.rows == [("a", "8 x 4", 8, 0.25, 64, 16)]
    assert "1 further weights are excluded" in layers.note


def test_changed_decisions_are_listed_and_counted_by_class():
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    control, sparse = [0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1, 0]
    difference, classes, changed = sparsity.compare_tables(
        table(sparse, labels), table(control, labels)
    )
    assert difference.rows[0][1].estimate.value == pytest.approx(-1 / 8)
    rows = [(*row[:4], row[4].estimate.value, *row[5:]) for row in classes.rows]
    assert rows == [("well", 4, 0.75, 1.0, 0.25, 0, 1), ("ill", 4, 0.75, 0.25, -0.5, 2, 0)]
    assert [row[0] for row in changed.rows] == ["i3", "i4", "i5"]
    assert changed.rows[0] == ("i3", "well", "ill", "well")
    assert "3 of 8" in changed.note


def test_change_of_a_sensitivity_has_the_interval_of_a_paired_difference():
    """Of 50 images of the class 15 are lost and 5 gained: a difference of -0.2."""
    labels, control = [0] * 50 + [1] * 50, [0] * 50 + [1] * 40 + [0] * 10
    sparse = [0] * 50 + [0] * 15 + [1] * 25 + [1] * 5 + [0] * 5
    _, classes, _ = sparsity.compare_tables(table(sparse, labels), table(control, labels))
    unchanged, change = (row[4].estimate for row in classes.rows)
    error = math.sqrt((20 / 50 - 0.2**2) / 50)  # of a mean of 15 times -1, 5 times 1
    interval = [-0.2 - 1.96 * error, -0.2 + 1.96 * error]
    assert change.value == pytest.approx(-0.2)
    assert [change.low, change.high] == pytest.approx(interval, abs=0.02)
    assert (change.n, change.patients) == (50, 50)
    assert (unchanged.value, unchanged.low, unchanged.high) == (0, 0, 0)
    page = html.section_html(classes)
    assert f"-0.20<small>{change.low:+.2f} to {change.high:+.2f}</small>" in page


def test_class_without_images_has_dashes_and_the_reason():
    _, classes, _ = sparsity.compare_tables(table([0, 0], [0, 0]), table([0, 1], [0, 0]))
    assert classes.rows[1] == ("ill", 0, None, None, None, 0, 0)
    assert "ill: no image." in classes.note
    assert "<td>ill</td>" in html.section_html(classes)
    assert html.section_html(classes).count("&ndash;") == 3


def test_only_the_report_is_limited_to_the_first_changed_decisions():
    n = sparsity.MAX_ROWS + 1
    labels = [0] * (n - 1) + [-1]
    control, sparse = table([0] * n, labels), table([1] * n, labels)
    *_, listed = sparsity.compare_tables(sparse, control)
    assert len(listed.rows) == sparsity.MAX_ROWS
    note = f"{n} of {n} decisions changed; the first {n - 1} are listed, changed.csv contains all."
    assert listed.note == note
    changed = sparsity.changed_decisions(sparse, control)
    assert changed["id"].tolist() == [f"i{i}" for i in range(n)]
    columns = ["label", "control_prediction", "sparse_prediction"]
    assert changed.iloc[-1][columns].tolist() == ["unknown", "well", "ill"]
    probability = math.exp(4) / (math.exp(4) + 1)
    assert np.allclose(changed[["control_probability", "sparse_probability"]], probability)


def test_plot_of_sparsity_costs_has_points_intervals_and_a_zero_line():
    overall = Estimate(-0.01, -0.02, 0.005, "known", 9, 9)
    costs = [SparsityCost("ast25", "dense", 0.742, [-0.03, 0.01], overall),
             SparsityCost("single10", "dense", None, [-0.04], None)]  # fmt: skip
    [axes] = curves.sparsity_cost_plot(costs).axes
    zero, small, line, large, single = (line.get_xydata().tolist() for line in axes.lines)
    assert [x for x, _ in zero] == [0, 0]
    assert [x for x, _ in small] == pytest.approx([-3, 1])
    assert line == [pytest.approx([-2, 0]), pytest.approx([0.5, 0])]
    assert large == [pytest.approx([-1, 0])]
    assert [x for x, _ in single] == pytest.approx([-4])
    first, second = (label.get_text() for label in axes.get_yticklabels())
    assert first == "ast25, zeros: 74.2 %\nminus dense"
    assert second == "single10, zeros: unknown\nminus dense"


def test_sections_of_a_run_without_sparsity_are_empty(tmp_path):
    assert sparsity.savings_sections(tmp_path, table([0], [0])) == []
    html.write_report(tmp_path / "r.html", "x", sparsity.describe_sparsity(SPARSITY))
    assert "Pruned layers" in (tmp_path / "r.html").read_text()


def test_sparse_run_is_compared_with_its_control(tmp_path):
    run, control = tmp_path / "run", tmp_path / "control"
    labels = [0, 0, 1, 1]
    write_json(run / "sparsity.json", SPARSITY | {"control": "../control"})
    sparse = table([0, 1, 1, 0], labels)
    missing = sparsity.savings_sections(run, sparse)[-1]
    assert "Not compared with control ../control" in missing.body
    table([0, 0, 1, 1], labels).write(control / "predictions/test.parquet")
    *_, difference, classes, changed = sparsity.savings_sections(run, sparse)
    assert difference.rows[0][1].estimate.value == -0.5
    assert classes.columns[2:4] == ("control", "sparse")
    assert [row[0] for row in changed.rows] == ["i1", "i3"]
    run_report.write_changed_decisions(run, sparse)
    assert pd.read_csv(run / "changed.csv")["id"].tolist() == ["i1", "i3"]
    (control / "predictions/test.parquet").unlink()
    run_report.write_changed_decisions(run, sparse)
    assert not (run / "changed.csv").exists()  # the decisions of an earlier control are removed
    write_json(run / "sparsity.json", SPARSITY)
    assert len(sparsity.savings_sections(run, sparse)) == 2


def test_pruned_run_has_its_speedup_and_reasons_of_unmeasured_ratios(tmp_path):
    assert "1.60 times as fast (1.25 to 2.00)" in sparsity.pruning_sentence(PRUNING)
    _, ratios, layers = sparsity.describe_pruning(PRUNING)
    assert ratios.rows[-1][1].value is None
    assert "energy: no counter" in ratios.note
    assert layers.rows == [("c", 3, 3, 64, 48)]
    assert run_report.measured_ratios(tmp_path) == {}
    write_json(tmp_path / "run/pruning.json", PRUNING)
    assert run_report.measured_ratios(tmp_path / "run")["latency_ratio_measured"] == 0.625
    table([1, 1], [1, 1]).write(tmp_path / "dense/predictions/test.parquet")
    *_, difference, _, changed = sparsity.savings_sections(tmp_path / "run", table([0, 1], [1, 1]))
    assert difference.columns[1] == "accuracy, pruned minus dense"
    assert changed.columns[2:] == ("dense", "pruned")
