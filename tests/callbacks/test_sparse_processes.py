import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.exhaustive
def test_two_processes_have_one_set_of_masks_and_resume_to_the_same_bits(tmp_path):
    """From the end of the dense stage and from every step of the sparse stage."""
    steps = range(5, 45)
    script = Path(__file__).with_name("sparse_processes.py")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.run(
        [sys.executable, script, "2", tmp_path, *map(str, steps)],
        env=environment, capture_output=True, text=True, timeout=400, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["equal"] == {str(step): True for step in [0, *steps]}
    assert (result["outcomes"], result["unmasked"]) == (1, [])
