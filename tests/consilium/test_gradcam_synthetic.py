"""The longest synthetic experiment, in a file of its own, as worker processes share out files."""

import pytest

from tests.consilium.test_experiment_synthetic import LONGEST, require_gates


@pytest.mark.exhaustive
@pytest.mark.usefixtures("drawn_plots")
def test_the_gradcam_experiment_passes_every_gate(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    require_gates(LONGEST, tmp_path, capsys)
