"""Several schedulers of one experiment: who fills a folder, and who waits."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from consilium.experiments import executors
from consilium.experiments.config import ExperimentConfig
from consilium.experiments.executors import LocalExecutor
from consilium.experiments.run import DONE, FAILED, Run
from consilium.experiments.scheduler import Scheduler

CONFIG = ExperimentConfig("s", "s", Path(), {})


def short_run(folder: Path) -> Run:
    """A run whose command ends at once and whose results are there already."""
    folder.mkdir(exist_ok=True)
    (folder / "results.json").touch()
    (folder / "log.txt").touch()
    return Run(folder.name, folder, ["--help"])


def test_a_run_is_locked_until_its_end_is_recorded(tmp_path: Path) -> None:
    run, other = short_run(tmp_path / "m"), short_run(tmp_path / "m")
    assert run.start() == ["--help"]
    assert run.process is not None
    run.process.wait()
    (run.folder / FAILED).touch()
    assert other.start() is None
    assert (run.folder / FAILED).is_file()  # only the owner of the lock removes marks
    assert other.state().status == "running"
    assert run.poll()
    assert other.state().status == "done"
    assert other.start() == ["--help"]
    assert other.process is None
    assert (run.folder / DONE).is_file()


@pytest.mark.parametrize(
    ("cores", "available", "limit", "batch", "expected"),
    [
        (4, 64, "max", 32, 4),
        (8, 33, "max", 32, 2),  # 1 GiB + 8 KiB * 32 * 224 ** 2 are 13.25 GiB
        (8, 33, str(20 * 2**30), 32, 1),  # a container
        (2, 8, "max", 32, 1),
        (8, 33, "max", 8, 8),
    ],
)
def test_the_default_of_jobs_fits_cores_and_memory(
    cores, available, limit, batch, expected, tmp_path, monkeypatch
):
    (tmp_path / "meminfo").write_text(
        f"MemTotal: 99 kB\nMemAvailable:   {available * 2**20} kB\nCached(x): 1 kB\n"
    )
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    monkeypatch.setattr(executors, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(executors, "MEMORY_LIMIT", tmp_path / "memory.max")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    settings = {"data.init_args.batch_size": batch, "data.init_args.preprocess.size": 224}
    fit = ["fit", *(f"--{name}={value}" for name, value in settings.items())]
    runs = [Run("a", tmp_path, fit), Run("e", tmp_path, ["explain", "runs/a"])]
    assert executors.default_slots(runs) == expected
    assert executors.default_slots(runs[1:]) == 1
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    assert executors.default_slots(runs) == 1


def test_runs_share_the_threads_and_an_interrupted_run_keeps_its_number(tmp_path, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    runs = [Run(name, tmp_path / name, ["fit"]) for name in "abc"]
    runs.append(Run("e", tmp_path / "e", ["test"], ("a", "b", "c")))
    started: list[int] = []

    def launch(arguments, log, lock, threads):
        started.append(threads)
        return subprocess.Popen(["true"])

    def start(slots, run):
        executor = LocalExecutor(slots, runs=runs)
        executor.launch = launch
        executor.start(run)
        run.wait()
        return started[-1]

    assert [start(2, run) for run in runs] == [4, 4, 4, 8]
    (runs[0].folder / "last.ckpt").touch()
    monkeypatch.setattr(Run, "_resume_arguments", lambda run: [])
    assert (start(8, runs[0]), start(8, runs[1])) == (4, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert start(8, runs[0]) == 0  # the environment's


def test_a_stopped_run_may_be_started_by_another_scheduler(tmp_path: Path) -> None:
    run, other = short_run(tmp_path / "m"), short_run(tmp_path / "m")
    run.start()
    run.stop()
    assert other.state().status == "stopped"
    assert other.start() == ["--help"]
    other.wait()
    assert other.state().status == "done"


def test_a_run_whose_folder_was_removed_fails_and_starts_again(tmp_path: Path) -> None:
    run = short_run(tmp_path / "m")
    run.start()
    shutil.rmtree(run.folder)
    run.wait()
    assert run.state().status == "failed"
    assert run.error_message().startswith(f"{run.folder} was removed while the run wrote to it")
    assert run.start() == ["--help"]
    (run.folder / "results.json").touch()
    run.wait()
    assert run.state().status == "done"


class RemovingExecutor(LocalExecutor):
    """Starting run `b` for the first time removes the finished run `a`."""

    def start(self, run: Run) -> list[str] | None:
        run.folder.mkdir()
        (run.folder / "results.json").touch()
        if run.name == "b":
            shutil.rmtree(run.folder.with_name("a"))
        return run.arguments

    def has_ended(self, run: Run) -> bool:
        return True

    def stop(self, runs: list[Run]) -> None:
        assert not runs


def test_a_member_that_was_removed_after_its_end_is_run_again(tmp_path: Path) -> None:
    a, b = (Run(name, tmp_path / name, ["fit"]) for name in "ab")
    (tmp_path / "a").mkdir()
    for name in ("results.json", "best.ckpt"):
        (tmp_path / "a" / name).touch()
    ensemble = Run("ensemble", tmp_path / "ensemble", ["test"], ("a", "b"), inputs=(a, b))
    runs = [a, b, ensemble]
    other = Run("other", tmp_path / "other", ["fit"])  # is not done: no report
    Scheduler(CONFIG, tmp_path, RemovingExecutor(1)).run(runs, [*runs, other])
    assert all(run.is_done() for run in runs)


class BusyExecutor(LocalExecutor):
    """Has one slot; another process has the lock of run `a` at the first starts."""

    def __init__(self, times: int) -> None:
        super().__init__(slots=1)
        self.times, self.starts = times, list[str]()

    def start(self, run: Run) -> list[str] | None:
        self.starts.append(run.name)
        if run.name == "a" and self.starts.count("a") <= self.times:
            return None
        run.folder.mkdir()
        (run.folder / "results.json").touch()
        return run.arguments

    def has_ended(self, run: Run) -> bool:
        return True

    def stop(self, runs: list[Run]) -> None:
        assert not runs


@pytest.mark.parametrize(("selected", "times", "starts"), [("ab", 1, "aba"), ("a", 3, "aaaa")])
def test_a_locked_run_is_waited_for_and_does_not_block_others(
    selected: str, times: int, starts: str, tmp_path: Path
) -> None:
    runs = [Run(name, tmp_path / name, ["fit"]) for name in "abc"]
    executor = BusyExecutor(times)
    scheduler = Scheduler(CONFIG, tmp_path, executor)
    assert scheduler.run(runs[: len(selected)], runs) == 0  # no report, because c is missing
    assert "".join(executor.starts) == starts
    assert [run.name for run in runs if run.is_done()] == list(selected)


class SleepingExecutor(LocalExecutor):
    """Its runs sleep; this process gets SIGTERM as soon as one has started."""

    def start(self, run: Run) -> list[str]:
        run.folder.mkdir()
        run.process = subprocess.Popen(["sleep", "600"])
        os.kill(os.getpid(), signal.SIGTERM)
        return run.arguments


def test_sigterm_ends_the_runs_of_the_scheduler(tmp_path: Path) -> None:
    run = Run("a", tmp_path / "a", ["fit"])
    handler = signal.getsignal(signal.SIGTERM)
    assert Scheduler(CONFIG, tmp_path, SleepingExecutor(1)).run([run], [run]) == 130
    assert run.process is not None
    assert run.process.poll() == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == handler
