"""One run of an experiment as a process: its state, its start, its end."""

import os
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache, cached_property
from pathlib import Path
from typing import IO

import pandas as pd
import yaml

from consilium.experiments import provenance
from consilium.experiments.processes import Launcher, Process, start_fork
from consilium.training.run_lock import LOCK_FILE, acquire_lock, is_locked
from evaluation.files import write_text

LOG = "log.txt"
FAILED = ".failed"
DONE = ".done"
CHECKPOINTS = ("last.ckpt", "previous.ckpt")  # to resume from
BEST = "best.ckpt"
MONITOR = "val/loss"  # best.ckpt is chosen by it
PER_MEMBER = ("predictions", "voters")  # folders of an ensemble with one file per member
TERMINATE_SECONDS = 10  # between SIGTERM and SIGKILL


@dataclass(frozen=True)
class RunState:
    """Status and progress of a run, read from its folder."""

    status: str  # waiting, running, stopped, failed, done, or changed: made with other settings
    epoch: int = 0  # completed epochs
    max_epochs: int = 0  # 0 if unknown
    metrics: dict[str, float] | None = None  # of the last epoch
    best: float | None = None  # lowest val/loss


@dataclass
class Run:
    """One run folder, the command that fills it, and the runs that must be done before.

    The process has a lock on the folder as long as it lives, and the parent until the end is
    recorded, so two schedulers never start the same run; a killed process leaves no lock.
    """

    name: str
    folder: Path
    arguments: list[str]  # without `consilium`
    needs: tuple[str, ...] = ()  # names of `inputs`
    result: str = "results.json"  # the file that tells that the command succeeded
    # `arguments` inside the experiment's folder, which can be moved: the recorded provenance
    portable_arguments: list[str] = field(default_factory=list)
    inputs: tuple["Run", ...] = ()
    process: Process | None = None
    lock: IO[str] | None = None
    returncode: int | None = None

    def state(self) -> RunState:
        """Status and progress, read from the folder alone."""
        epoch, metrics, best = read_progress(self.folder)
        config = self.folder / "config.yaml"
        has_epochs = self.arguments[0] == "fit" and config.is_file()
        max_epochs = _read_max_epochs(config, config.stat().st_mtime_ns) if has_epochs else 0
        return RunState(self._status(), epoch, max_epochs, metrics, best)

    def is_done(self) -> bool:
        """Whether all files are written, with the settings that the experiment has now.

        A process that ended well is marked, because the result is not the last file. A command
        that was typed by hand has no log and no mark; its result is trusted.
        """
        is_marked = (self.folder / DONE).is_file() or not (self.folder / LOG).exists()
        return is_marked and (self.folder / self.result).is_file() and not self.change()

    @cached_property
    def settings(self) -> dict[str, str]:
        """Settings of the command by dotted name, with config files resolved."""
        return provenance.read_settings(self.portable_arguments or self.arguments)

    def change(self) -> str:
        """How the files were made if not with the experiment's current settings, else "".

        Such as `from another NAME` or `with SETTING VALUE, the experiment has OTHER`. Files without
        recorded provenance are trusted.
        """
        if not any((self.folder / name).is_file() for name in (self.result, *CHECKPOINTS)):
            return ""
        for run in self.inputs:
            if not (run.folder / run.result).is_file() or run.change():
                return f"from another {run.name}"
        recorded = provenance.read_provenance(self.folder)
        return recorded.difference(self._provenance()) if recorded else ""

    def refuse_change(self) -> None:
        """Raises ValueError if this is a fit whose files were made with other settings."""
        if self.arguments[0] == "fit" and self.change():
            raise ValueError(
                f"{self.folder} was made {self.change()}; remove that folder or use --output DIR"
            )

    def mark_outdated(self) -> None:
        """Records an empty provenance if the inputs changed and none was recorded.

        Otherwise the run would count as done as soon as its inputs are there again.
        """
        if self.change() and provenance.read_provenance(self.folder) is None:
            provenance.Provenance({}, {}).write(self.folder)

    def _provenance(self, threads: int = 0) -> provenance.Provenance:
        """The provenance of files that this run would write now."""
        digests = {run.name: provenance.file_digest(run.folder / run.result) for run in self.inputs}
        return provenance.Provenance(self.settings, digests, threads)

    def start(self, launch: Launcher = start_fork, threads: int = 0) -> list[str] | None:
        """Starts the command in a process, from the last saved epoch, unless the run is done.

        Returns the arguments, also if done; None if another process has the folder's lock. A run
        that was interrupted keeps its number of threads, unless OMP_NUM_THREADS is set.
        """
        self.lock = acquire_lock(self.folder / LOCK_FILE)
        if self.lock is None:
            return None
        self.settings = provenance.read_settings(self.portable_arguments or self.arguments)
        if self.is_done():
            self.lock.close()
            return self.arguments
        recorded = provenance.read_provenance(self.folder)
        if "OMP_NUM_THREADS" in os.environ:
            threads = 0
        elif recorded and self._has_checkpoint():
            threads = recorded.threads or threads
        self.prepare_folder(threads)
        arguments = [*self.arguments, *self._resume_arguments()]
        with (self.folder / LOG).open("ab") as log:
            self.process = launch(arguments, log, self.lock, threads)
        return arguments

    def prepare_folder(self, threads: int = 0) -> None:
        """Removes the marks of an earlier end and files of other settings; records provenance."""
        self.refuse_change()
        results = ("results.json", "results.val.json") if self.arguments[0] == "fit" else ()
        for name in (FAILED, DONE, *results):
            (self.folder / name).unlink(missing_ok=True)
        if self.change():
            for name in PER_MEMBER:
                shutil.rmtree(self.folder / name, ignore_errors=True)
        self._provenance(threads).write(self.folder)

    def _has_checkpoint(self) -> bool:
        """Whether the folder has a checkpoint to resume from."""
        return any((self.folder / name).is_file() for name in CHECKPOINTS)

    def _resume_arguments(self) -> list[str]:
        """`--ckpt_path FILE` to resume a fit, [] if there is nothing to resume."""
        if not self._has_checkpoint():
            return []
        from consilium.training.preflight import checkpoint_to_resume  # imports torch

        checkpoint = checkpoint_to_resume(self.folder)
        return ["--ckpt_path", str(checkpoint)] if checkpoint else []

    def poll(self) -> bool:
        """Whether the process has ended; if so, marks the folder as done or failed."""
        if self.process is None or self.process.poll() is None:
            return False
        self.returncode = self.process.returncode
        if not (self.folder / LOG).is_file():
            for name in CHECKPOINTS:  # the history lacks the epochs before
                (self.folder / name).unlink(missing_ok=True)
            self.fail(f"{self.folder} was removed while the run wrote to it; run it again")
        elif self.returncode:
            write_text(self.folder / FAILED, self.error_message())
        else:
            (self.folder / DONE).touch()
        self._release_lock()  # not before: without lock and mark a run can be started
        return True

    def wait(self) -> None:
        """Waits until the process has ended."""
        if self.process is not None:
            self.process.wait()
            self.poll()

    def require_checkpoint(self) -> None:
        """Marks a finished fit as failed if best.ckpt, which another run needs, is missing."""
        if self.arguments[0] == "fit" and self.is_done() and not (self.folder / BEST).is_file():
            (self.folder / DONE).unlink(missing_ok=True)
            self.fail(f"{self.folder / BEST} is missing")

    def fail(self, reason: str) -> None:
        """Marks the run as failed and appends the reason to its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{reason}\n")
        write_text(self.folder / FAILED, reason)

    def stop(self) -> None:
        """Ends the process; the next start continues from last.ckpt."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=TERMINATE_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._release_lock()

    def error_message(self) -> str:
        """The last line of the log, or the exit code if the log is empty."""
        lines = (self.folder / LOG).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with exit code {self.returncode} and an empty log"

    def _release_lock(self) -> None:
        """Closes the lock file."""
        if self.lock is not None:
            self.lock.close()

    def _status(self) -> str:
        """The status of a `RunState`."""
        if self.is_done():
            return "done"
        if is_locked(self.folder / LOCK_FILE):
            return "running"
        if self.change():
            return "changed"
        if (self.folder / FAILED).is_file():
            return "failed"
        return "stopped" if (self.folder / LOG).is_file() else "waiting"


def read_progress(folder: Path) -> tuple[int, dict[str, float] | None, float | None]:
    """Completed epochs, metrics of the last epoch, and the lowest val/loss of a run folder."""
    path = folder / "history.csv"
    return _read_history(path, path.stat().st_mtime_ns) if path.is_file() else (0, None, None)


@cache
def _read_history(path: Path, modified: int) -> tuple[int, dict[str, float], float | None]:
    """`read_progress` of a history.csv; `modified` is in the cache key to read a new file."""
    history = pd.read_csv(path)
    last = history.iloc[-1].to_dict()
    best = float(history[MONITOR].min()) if MONITOR in history else None
    return int(last["epoch"]) + 1, {str(k): float(v) for k, v in last.items()}, best


@cache
def _read_max_epochs(config: Path, modified: int) -> int:
    """Planned epochs, 0 if unknown; `modified` is in the cache key to read a file again."""
    return int(yaml.safe_load(config.read_text())["trainer"]["max_epochs"] or 0)
