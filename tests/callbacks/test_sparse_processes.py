import json
from pathlib import Path

import pytest

from tests.processes import run_script


@pytest.mark.exhaustive
def test_two_processes_have_one_set_of_masks_and_resume_to_the_same_bits(tmp_path):
    """From the end of the dense stage and from steps with and without new masks.

    One process resumes from every step in test_sparse_training.
    """
    steps = (5, 6, 9, 10, 15, 20, 31, 44)
    script = Path(__file__).with_name("sparse_processes.py")
    run_script(script, 2, tmp_path, *steps, world=2)
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["equal"] == {str(step): True for step in [0, *steps]}
    assert (result["outcomes"], result["unmasked"]) == (1, [])
