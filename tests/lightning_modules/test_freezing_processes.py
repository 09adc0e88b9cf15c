"""Frozen layers on two processes: they do not change, and both processes have the same weights."""

import json
from pathlib import Path

import pytest

from lightning_modules.freezing import FineTuning
from tests.processes import run_script

SCRIPT = Path(__file__).parent / "freezing_processes.py"


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
    arguments = (strategy, json.dumps(unfreeze_epochs), tmp_path / "p", tmp_path)
    run_script(SCRIPT, *arguments, world=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
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
