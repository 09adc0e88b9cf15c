"""The Ray engine on a cluster of two workers on this machine."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from consilium.cli.main import main
from evaluation.results import read_results
from lightning_modules import checkpoints
from tests.conftest import ROOT


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Address of a head and a second node, one core each, without usage statistics."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("RAY_worker_niceness", "0")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    nodes.add_node(num_cpus=1)
    yield nodes.address
    nodes.shutdown()


def worker_of(run: Path) -> int:
    """Process ID of the Ray worker whose child fills the run folder."""
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        arguments = file.read_bytes().split(b"\0") if file.is_file() else []
        if b"fit" in arguments and str(run).encode() in arguments:
            status = (file.parent / "status").read_text()
            return int(status.split("PPid:")[1].split()[0])
    raise AssertionError(f"no process fills {run}")


@pytest.mark.exhaustive
def test_a_cluster_gives_the_same_results_although_a_worker_is_killed(
    experiment: Path, experiment_file: Path, tmp_path: Path, cluster: str
) -> None:
    args = ["experiment", "run", str(experiment_file), "--output", str(tmp_path), "--engine", "ray"]
    command = [sys.executable, "-m", "consilium", *args, "--ray-address", cluster]
    run = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    small = tmp_path / "members" / "small"
    while not (small / "last.ckpt").is_file():
        assert run.poll() is None
        time.sleep(0.02)
    os.kill(worker_of(small), signal.SIGKILL)
    assert run.wait() == 1  # one of its gates fails
    for name in ("small", "large"):
        local, remote = (checkpoints.read(folder / "members" / name / "best.ckpt")[1]
                         for folder in (experiment, tmp_path))  # fmt: skip
        assert all(torch.equal(local[key], remote[key]) for key in local)
    results, expected = (read_results(folder / "results.json") for folder in (tmp_path, experiment))
    assert results == expected
    assert "failed" not in (tmp_path / "experiment.log").read_text()


def test_options_of_ray_require_its_engine(
    experiment_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["experiment", "run", str(experiment_file), "--num-gpus", "1"]) == 2
    assert "require --engine ray" in capsys.readouterr().err
