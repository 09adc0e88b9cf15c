"""Frozen layers on two processes: they do not change, and both processes have the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.freezing import FineTuning

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "freezing_processes.py"


def run_script(strategy, unfreeze_epochs, folder):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [strategy, json.dumps(unfreeze_epochs), str(folder / "p"), str(folder)]
    completed = subprocess.run(
        [sys.executable, str(SCRIPT), *arguments],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return completed, [json.loads(file.read_text()) for file in sorted(folder.glob("?.json"))]


@pytest.mark.parametrize(
    ("strategy", "unfreeze_epochs", "frozen_epochs"),
    [
        ("ddp", [], [0, 1, 2]),
        pytest.param("ddp_find_unused_parameters_true", [2], [0, 1], marks=pytest.mark.exhaustive),
    ],
)
def test_frozen_stages_do_not_change_and_processes_agree(
    strategy, unfreeze_epochs, frozen_epochs, tmp_path
):
    completed, (first, second) = run_script(strategy, unfreeze_epochs, tmp_path)
    assert completed.returncode == 0, completed.stderr
    assert first == second
    stage_hashes = [stage for stage, _ in first[:3]]
    assert len({stage_hashes[epoch] for epoch in frozen_epochs}) == 1
    assert len({network for _, network in first[:3]}) == 3
    if unfreeze_epochs:
        assert stage_hashes[2] != stage_hashes[1]


def test_unfreezing_on_several_processes_needs_find_unused_parameters():
    fine_tuning = FineTuning(frozen_stages=1, unfreeze_epochs=[2])
    with pytest.raises(ValueError, match=r"needs --trainer\.strategy ddp_find_unused"):
        fine_tuning.prepare(None, {})
