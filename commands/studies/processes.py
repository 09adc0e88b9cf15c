"""Runs of a study as processes: what state each is in, started, watched, resumed."""

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

import pandas as pd
import yaml

from evaluation.files import write_text

ROOT = Path(__file__).resolve().parents[2]
LOG = "log.txt"
LOCK = ".lock"
FAILED = ".failed"
DONE = ".done"
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
PATIENCE = 10  # seconds that a process gets to end by itself
CHOSEN = "val/loss"  # the best epoch is chosen by it


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Args:
        word: waiting, running, stopped, failed or done.
        epoch: epochs completed.
        epochs: epochs planned, 0 while unknown.
        figures: figures of the last epoch.
        best: the least val/loss so far.
    """

    word: str
    epoch: int = 0
    epochs: int = 0
    figures: dict[str, float] | None = None
    best: float | None = None


@dataclass
class Run:
    """One run folder, the command that fills it, and the runs that must be done before.

    The process holds a lock on the folder for as long as it lives, so a second runner never
    starts the same run twice, and a killed process leaves no lock behind.
    """

    name: str
    folder: Path
    arguments: list[str]
    needs: tuple[str, ...] = ()
    process: subprocess.Popen[bytes] | None = None
    returncode: int | None = None

    def state(self) -> State:
        """Read from the folder alone."""
        epoch, figures, best = _progress(self.folder)
        epochs = _planned(self.folder) if self.arguments[0] == "fit" else 0
        return State(self._word(), epoch, epochs, figures, best)

    def done(self) -> bool:
        """Whether the run has all its files.

        Results are not the last of them. A process of a study that ended well is marked as such;
        a command that was typed by hand leaves no log, and its results are believed.
        """
        marked = (self.folder / DONE).is_file() or not (self.folder / LOG).exists()
        return marked and (self.folder / "results.json").is_file()

    def start(self, with_parent: bool = False) -> list[str]:
        """Starts the process, from last.ckpt where there is one; returns its arguments.

        `with_parent`: the process ends when this one does, whatever ends it.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        for mark in (FAILED, DONE):
            (self.folder / mark).unlink(missing_ok=True)
        last = self.folder / "last.ckpt"
        resume = ["--ckpt_path", str(last)] if last.is_file() else []
        arguments = [*self.arguments, *resume]
        with (self.folder / LOCK).open("w") as lock, (self.folder / LOG).open("ab") as log:
            _lock(lock, self.name)
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                pass_fds=[lock.fileno()],
                preexec_fn=_end_with_parent if with_parent else None,
            )
        return arguments

    def poll(self) -> bool:
        """Whether the process has ended."""
        if self.process is None or self.process.poll() is None:
            return False
        self.returncode = self.process.returncode
        if self.returncode:
            write_text(self.folder / FAILED, self.complaint())
        else:
            (self.folder / DONE).touch()
        return True

    def wait(self) -> None:
        """Waits until the process has ended."""
        if self.process is not None:
            self.process.wait()
            self.poll()

    def fail(self, why: str) -> None:
        """Marks the run as failed, and says why in its log."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{why}\n")
        write_text(self.folder / FAILED, why)

    def stop(self) -> None:
        """Ends the process; what it has not written by then is made again by the next run."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        try:
            self.process.wait(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def complaint(self) -> str:
        """The last line of the log, which says what went wrong."""
        lines = (self.folder / LOG).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with code {self.returncode} and no word"

    def _word(self) -> str:
        if self.done():
            return "done"
        if _is_locked(self.folder / LOCK):
            return "running"
        if (self.folder / FAILED).is_file():
            return "failed"
        return "stopped" if (self.folder / LOG).is_file() else "waiting"


def wait_for_lock(run: Run, pause: float = 0.5) -> None:
    """Waits while another process is filling the run folder."""
    while _is_locked(run.folder / LOCK):
        time.sleep(pause)


def _environment() -> dict[str, str]:
    """This tree first, so that members run the code that started them."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}


def _end_with_parent() -> None:
    """Asks Linux for SIGKILL when the parent dies; elsewhere it is not to be had."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _lock(lock: IO[str], name: str, tries: int = 20) -> None:
    """Takes the lock; somebody who only looks whether it is held lets go at once."""
    for _ in range(tries):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.05)
        else:
            return
    raise ValueError(f"run {name!r} is being filled by another process")


def _is_locked(path: Path) -> bool:
    if not path.is_file():
        return False
    with path.open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _progress(folder: Path) -> tuple[int, dict[str, float] | None, float | None]:
    path = folder / "history.csv"
    if not path.is_file():
        return 0, None, None
    history = pd.read_csv(path)
    last = history.iloc[-1].to_dict()
    best = float(history[CHOSEN].min()) if CHOSEN in history else None
    return int(last["epoch"]) + 1, {str(k): float(v) for k, v in last.items()}, best


def _planned(folder: Path) -> int:
    path = folder / "config.yaml"
    return _epochs(path, path.stat().st_mtime_ns) if path.is_file() else 0


@cache
def _epochs(path: Path, written: int) -> int:
    """The file is read again only when it was written anew."""
    return int(yaml.safe_load(path.read_text())["trainer"]["max_epochs"] or 0)
