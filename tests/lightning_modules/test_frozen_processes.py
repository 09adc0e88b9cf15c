"""Frozen layers on two processes: they stand still, and all processes end with the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.freezing import FineTuning

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "frozen_processes.py"


def fitted(strategy, thaw, folder):
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(SCRIPT), strategy, json.dumps(thaw), str(folder / "p"), str(folder)],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    return done, [json.loads(file.read_text()) for file in sorted(folder.glob("?.json"))]


@pytest.mark.parametrize(
    ("strategy", "thaw", "still"),
    [("ddp", [], [0, 1, 2]), ("ddp_find_unused_parameters_true", [2], [0, 1])],
)
def test_frozen_stages_stand_still_and_processes_agree(strategy, thaw, still, tmp_path):
    done, (one, other) = fitted(strategy, thaw, tmp_path)
    assert done.returncode == 0, done.stderr
    assert one == other
    first = [stage for stage, _ in one[:3]]
    assert len({first[epoch] for epoch in still}) == 1
    assert len({whole for _, whole in one[:3]}) == 3
    if thaw:
        assert first[2] != first[1]


def test_thawing_without_looking_for_the_unused_is_refused_in_one_line():
    tuning = FineTuning(frozen_stages=1, thaw_epochs=[2])
    with pytest.raises(ValueError, match=r"needs --trainer\.strategy ddp_find_unused"):
        tuning.hold(None, {})
