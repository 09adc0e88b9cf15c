"""Runs of a study as processes: what state each is in, started, watched, resumed."""

import ctypes
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from commands import ROOT
from commands.studies.locks import is_locked, locked
from commands.studies.state import State, planned, progress
from evaluation.files import write_text

LOG = "log.txt"
LOCK = ".lock"
FAILED = ".failed"
DONE = ".done"
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
PATIENCE = 10  # seconds that a process gets to end by itself


@dataclass
class Run:
    """One run folder, the command that fills it, and the runs that must be done before.

    `result` is the file that holds what the command found.

    The process holds a lock on the folder for as long as it lives, and whoever started it until
    its end is marked, so a second runner never starts the same run twice; a killed process leaves
    no lock behind.
    """

    name: str
    folder: Path
    arguments: list[str]
    needs: tuple[str, ...] = ()
    result: str = "results.json"
    process: subprocess.Popen[bytes] | None = None
    lock: IO[str] | None = None
    returncode: int | None = None

    def state(self) -> State:
        """Read from the folder alone."""
        epoch, figures, best = progress(self.folder)
        epochs = planned(self.folder) if self.arguments[0] == "fit" else 0
        return State(self._word(), epoch, epochs, figures, best)

    def done(self) -> bool:
        """Whether the run has all its files.

        Results are not the last of them. A process of a study that ended well is marked as such;
        a command that was typed by hand leaves no log, and its results are believed.
        """
        marked = (self.folder / DONE).is_file() or not (self.folder / LOG).exists()
        return marked and (self.folder / self.result).is_file()

    def start(self, with_parent: bool = False) -> list[str] | None:
        """Starts the process, from last.ckpt where there is one; returns its arguments.

        None while another process fills the folder. A run that is done by then is left as it is.
        `with_parent`: the process ends when this one does, whatever ends it.
        """
        self.lock = locked(self.folder / LOCK)
        if self.lock is None:
            return None
        if self.done():
            self.lock.close()
            return self.arguments
        for mark in (FAILED, DONE):
            (self.folder / mark).unlink(missing_ok=True)
        last = self.folder / "last.ckpt"
        arguments = self.arguments + (["--ckpt_path", str(last)] if last.is_file() else [])
        self.process = self._process(arguments, self.lock, with_parent)
        return arguments

    def _process(
        self, arguments: list[str], lock: IO[str], with_parent: bool
    ) -> subprocess.Popen[bytes]:
        with (self.folder / LOG).open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "main", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                pass_fds=[lock.fileno()],
                preexec_fn=_end_with_parent if with_parent else None,
            )

    def poll(self) -> bool:
        """Whether the process has ended."""
        if self.process is None or self.process.poll() is None:
            return False
        self.returncode = self.process.returncode
        if self.returncode:
            write_text(self.folder / FAILED, self.complaint())
        else:
            (self.folder / DONE).touch()
        self._let_go()  # not before: unlocked and unmarked means that there is something to do
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
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=PATIENCE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self._let_go()

    def complaint(self) -> str:
        """The last line of the log, which says what went wrong."""
        lines = (self.folder / LOG).read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with code {self.returncode} and no word"

    def _let_go(self) -> None:
        if self.lock is not None:
            self.lock.close()

    def _word(self) -> str:
        if self.done():
            return "done"
        if is_locked(self.folder / LOCK):
            return "running"
        if (self.folder / FAILED).is_file():
            return "failed"
        return "stopped" if (self.folder / LOG).is_file() else "waiting"


def _environment() -> dict[str, str]:
    """This tree first, so that members run the code that started them."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}


def _end_with_parent() -> None:
    """Asks Linux for SIGKILL when the parent dies; elsewhere it is not to be had."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
