import numpy as np
import pandas as pd
import pytest

from evaluation import report, sparsity
from evaluation.table import PredictionTable

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
    assert "0.70 of its time" in sparsity.sentence(SAID | {"latency_ratio_measured": 0.7})


def test_layers_have_their_densities():
    _, layers = sparsity.sections(SAID)
    assert layers.rows == [("a", "8 x 4", 8, 0.25, 64, 16)]
    assert "1 further weights" in layers.note


def test_every_changed_decision_is_listed_and_counted_by_class():
    labels = [0, 0, 0, 0, 1, 1, 1, 1]
    control, sparse = [0, 0, 0, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0, 1, 0]
    gap, classes, changed = sparsity.against_control(table(sparse, labels), table(control, labels))
    assert gap.rows[0][1].figure.value == pytest.approx(-1 / 8)
    assert classes.rows == [("well", 4, 0.75, 1.0, 0.25, 0, 1), ("ill", 4, 0.75, 0.25, -0.5, 2, 0)]
    assert [row[0] for row in changed.rows] == ["i3", "i4", "i5"]
    assert changed.rows[0] == ("i3", "well", "ill", "well")
    assert "3 of 8" in changed.note


def test_the_run_report_shows_it(tmp_path):
    assert sparsity.of_run(tmp_path, table([0], [0])) == []
    report.write_report(tmp_path / "r.html", "x", sparsity.sections(SAID))
    assert "Pruned layers" in (tmp_path / "r.html").read_text()
