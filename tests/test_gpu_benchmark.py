"""The benchmark for a GPU runs, so that it is ready when there is one."""

import json

import pytest

from benchmarks import gpu


@pytest.mark.exhaustive
def test_every_row_is_measured_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["gpu", "--tiny", "-o", str(tmp_path)])
    gpu.main()
    rows = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert len(rows) >= len(gpu.MEASUREMENTS)
    assert [row["note"] for row in rows] == [""] * len(rows)
    assert all(row["value"] > 0 for row in rows)
    assert (tmp_path / "gpu.md").read_text().count("\n|") == len(rows) + 2


def test_a_row_that_fails_states_its_reason_and_the_others_go_on(tmp_path, monkeypatch):
    def fail(scale):
        raise ModuleNotFoundError("No module named 'onnx'")
        yield

    def measure(scale):
        yield gpu.Row("other", 1.0, "ms")

    monkeypatch.setattr(gpu, "MEASUREMENTS", {"failing": fail, "other": measure})
    monkeypatch.setattr("sys.argv", ["gpu", "--tiny", "-o", str(tmp_path)])
    gpu.main()
    first, second = json.loads((tmp_path / "gpu.json").read_text())["rows"]
    assert first["note"] == "not measured: No module named 'onnx'"
    assert second["value"] == 1.0
