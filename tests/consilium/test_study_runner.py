"""Runs that several runners are after: who fills a folder, and who waits."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from consilium.experiments.config import ExperimentConfig
from consilium.experiments.executors import Local
from consilium.experiments.run import DONE, FAILED, Run
from consilium.experiments.scheduler import Runner


def quick(folder: Path) -> Run:
    """A run whose command ends at once and whose results are there already."""
    folder.mkdir(exist_ok=True)
    (folder / "results.json").touch()
    (folder / "log.txt").touch()
    return Run(folder.name, folder, ["--help"])


def test_a_run_is_held_until_its_end_is_marked(tmp_path: Path) -> None:
    run, other = quick(tmp_path / "m"), quick(tmp_path / "m")
    assert run.start() == ["--help"]
    assert run.process is not None
    run.process.wait()
    (run.folder / FAILED).touch()
    assert other.start() is None
    assert (run.folder / FAILED).is_file()  # who does not hold the folder takes no marks away
    assert other.state().word == "running"
    assert run.poll()
    assert other.state().word == "done"
    assert other.start() == ["--help"]
    assert other.process is None
    assert (run.folder / DONE).is_file()


def test_a_run_that_was_stopped_may_be_started_by_another(tmp_path: Path) -> None:
    run, other = quick(tmp_path / "m"), quick(tmp_path / "m")
    run.start()
    run.stop()
    assert other.state().word == "stopped"
    assert other.start() == ["--help"]
    other.wait()
    assert other.state().word == "done"


class Shared:
    """An engine of one slot; somebody else fills `a` when it is first asked for."""

    slots = 1

    def __init__(self, times: int) -> None:
        self.times, self.asked = times, list[str]()

    def start(self, run: Run) -> list[str] | None:
        self.asked.append(run.name)
        if run.name == "a" and self.asked.count("a") <= self.times:
            return None
        run.folder.mkdir()
        (run.folder / "results.json").touch()
        return run.arguments

    def ended(self, run: Run) -> bool:
        return True

    def stop(self, runs: list[Run]) -> None:
        assert not runs


@pytest.mark.parametrize(("chosen", "times", "asked"), [("ab", 1, "aba"), ("a", 3, "aaaa")])
def test_what_others_fill_is_waited_for_and_holds_nothing_up(
    chosen: str, times: int, asked: str, tmp_path: Path
) -> None:
    runs = [Run(name, tmp_path / name, ["fit"]) for name in "abc"]
    engine = Shared(times)
    study = ExperimentConfig("s", "s", Path(), {})
    assert Runner(study, tmp_path, engine).run(runs[: len(chosen)], runs) == 0  # no report: no c
    assert "".join(engine.asked) == asked
    assert [run.name for run in runs if run.done()] == list(chosen)


class Sleeper(Local):
    """An engine whose runs sleep; SIGTERM reaches this process as soon as one has begun."""

    def start(self, run: Run) -> list[str]:
        run.folder.mkdir()
        run.process = subprocess.Popen(["sleep", "600"])
        os.kill(os.getpid(), signal.SIGTERM)
        return run.arguments


def test_a_runner_that_is_told_to_end_ends_its_runs(tmp_path: Path) -> None:
    run = Run("a", tmp_path / "a", ["fit"])
    before = signal.getsignal(signal.SIGTERM)
    assert (
        Runner(ExperimentConfig("s", "s", Path(), {}), tmp_path, Sleeper(1)).run([run], [run])
        == 130
    )
    assert run.process is not None
    assert run.process.poll() == -signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
