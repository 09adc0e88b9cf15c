"""The same pictures whatever the number of workers and of processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "seen_processes.py"


def seen(world, workers, root, out):
    """What was seen in two epochs: hash by (epoch, index), and how often anything was."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    arguments = [str(value) for value in (world, workers, root, out)]
    subprocess.run([sys.executable, str(SCRIPT), *arguments], env=env, check=True, timeout=300)
    parts = [json.loads(file.read_text()) for file in out.glob(f"{world}-{workers}-*.json")]
    assert len(parts) == world
    rows = [tuple(row) for part in parts for row in part]
    return {(epoch, index): digest for epoch, index, digest in rows}, len(rows)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process with two workers sees, and where the pictures are."""
    folder = tmp_path_factory.mktemp("seen")
    return seen(1, 2, folder / "phantoms", folder)[0], folder


@pytest.mark.parametrize(("world", "workers"), [(1, 8), (2, 2)])
def test_workers_and_processes_do_not_change_what_is_seen(world, workers, alone, tmp_path):
    alone, folder = alone
    found, count = seen(world, workers, folder / "phantoms", tmp_path)
    assert found == alone
    assert count - len(found) < 2 * world  # an odd epoch is filled up by at most one picture
    assert {digest for (epoch, _), digest in found.items() if epoch == 0} != {
        digest for (epoch, _), digest in found.items() if epoch == 1
    }
