"""A fit that is killed, or whose disk is full, ends after a rerun as if nothing had happened.

`CONSILIUM_KILLS=20 pytest -m '' tests/test_kills.py` tries more moments.
"""

import os
import resource
import signal
import tempfile
import time
from pathlib import Path

import numpy as np
import pytest

from lightning_modules import checkpoints
from tests.processes import CONTEXT

MOMENTS = range(int(os.environ.get("CONSILIUM_KILLS", "3")))
FULL = range(max(1, len(MOMENTS) // 4))
SMALL_FILE = 200_000  # bytes; a checkpoint of the tiny network is larger
OTHER_FILE_SYSTEM = Path("/dev/shm")
pytestmark = [
    pytest.mark.exhaustive,
    pytest.mark.skipif(not OTHER_FILE_SYSTEM.is_dir(), reason="no second file system"),
]


def fit(arguments, temporary):
    """A fit whose temporary files are on another file system than its run folder."""
    from consilium.cli.main import main

    os.environ["TMPDIR"] = tempfile.tempdir = temporary
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # too large a file is an error, as on a full disk
    raise SystemExit(main(arguments))


@pytest.fixture
def start(tiny, tmp_path):
    """A function that starts a fit in a process, resumed if it was interrupted."""
    with tempfile.TemporaryDirectory(dir=OTHER_FILE_SYSTEM) as temporary:

        def start_fit(run):
            configs = tiny.configs("killed", **{"trainer.max_epochs": 4})
            has_checkpoint = any((run / f"{name}.ckpt").exists() for name in ("last", "previous"))
            resume = ["--ckpt_path", "last"] if has_checkpoint else []
            arguments = ["fit", *configs, "--run", str(run), *resume]
            process = CONTEXT.Process(target=fit, args=(arguments, temporary))
            process.start()
            return process

        yield start_fit


def final_weights(run):
    return [checkpoints.read(run / name)[0].weights for name in ("best.ckpt", "last.ckpt")]


@pytest.fixture
def whole(start, tmp_path):
    """The weights of an undisturbed fit, and its seconds."""
    begin, process = time.monotonic(), start(tmp_path / "whole")
    process.join()
    assert process.exitcode == 0
    return final_weights(tmp_path / "whole"), time.monotonic() - begin


def finish(start, run):
    """Runs the fit again until it ends; each attempt trains a part of the epochs or all."""
    process = start(run)
    process.join()
    assert process.exitcode == 0


def test_killed_at_any_moment_the_rerun_has_the_weights_of_an_undisturbed_fit(
    start, whole, tmp_path
):
    expected, seconds = whole
    for k in MOMENTS:
        run, process = tmp_path / f"killed{k}", start(tmp_path / f"killed{k}")
        time.sleep(np.random.default_rng(k).uniform(0.2, 0.9) * seconds)
        process.kill()
        process.join()
        if process.exitcode != 0:  # also if it was about to end
            finish(start, run)
        assert final_weights(run) == expected
        assert not list(run.rglob(".*ckpt*"))


def test_a_full_disk_ends_a_fit_in_one_line_and_the_rerun_has_its_weights(start, whole, tmp_path):
    expected, seconds = whole
    for k in FULL:
        run, process = tmp_path / f"full{k}", start(tmp_path / f"full{k}")
        time.sleep(np.random.default_rng(100 + k).uniform(0.2, 0.8) * seconds)
        _, hard = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (SMALL_FILE, hard))
        process.join()
        if not (run / "results.val.json").exists():
            finish(start, run)
        assert final_weights(run) == expected
