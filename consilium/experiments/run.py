"""Runs of a study as processes: what state each is in, started, watched, resumed."""

import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO

from consilium.experiments import provenance
from consilium.experiments.child import started
from consilium.experiments.locks import LOCK, is_locked, locked
from consilium.experiments.state import State, planned, progress
from evaluation.files import write_text

LOG = "log.txt"
FAILED = ".failed"
DONE = ".done"
LAST = "last.ckpt"
OF_MEMBERS = ("predictions", "voters")  # folders of an ensemble with files named like its members
PATIENCE = 10  # seconds that a process gets to end by itself


@dataclass
class Run:
    """One run folder, the command that fills it, and the runs that must be done before.

    `result` is the file that holds what the command found. `command`: the arguments as if the
    study's folder were the one that it runs in, so that it may be moved. `of`: the runs of `needs`.

    The process holds a lock on the folder for as long as it lives, and whoever started it until
    its end is marked, so a second runner never starts the same run twice; a killed process leaves
    no lock behind.
    """

    name: str
    folder: Path
    arguments: list[str]
    needs: tuple[str, ...] = ()
    result: str = "results.json"
    command: list[str] = field(default_factory=list)
    of: tuple["Run", ...] = ()
    process: subprocess.Popen[bytes] | None = None
    lock: IO[str] | None = None
    returncode: int | None = None

    def state(self) -> State:
        """Read from the folder alone."""
        epoch, figures, best = progress(self.folder)
        epochs = planned(self.folder) if self.arguments[0] == "fit" else 0
        return State(self._word(), epoch, epochs, figures, best)

    def done(self) -> bool:
        """Whether the run has all its files and was made as it would be now.

        Results are not the last of them. A process of a study that ended well is marked as such;
        a command that was typed by hand leaves no log, and its results are believed.
        """
        marked = (self.folder / DONE).is_file() or not (self.folder / LOG).exists()
        return marked and (self.folder / self.result).is_file() and not self.changed()

    @cached_property
    def told(self) -> dict[str, str]:
        """The settings of the command, config files read through."""
        return provenance.told(self.command or self.arguments)

    def changed(self) -> str:
        """What is there and was made otherwise than it would be now: how so, else "".

        Of what is there without a word on how it was made the best is thought.
        """
        if not any((self.folder / name).is_file() for name in (self.result, LAST)):
            return ""
        for run in self.of:
            if not (run.folder / run.result).is_file() or run.changed():
                return f"of another {run.name}"
        kept = provenance.kept(self.folder)
        return kept.difference(self._made()) if kept else ""

    def refuse_changed(self) -> None:
        """An error where training would go on, or be taken as done, from other settings."""
        if self.arguments[0] == "fit" and self.changed():
            raise ValueError(
                f"{self.folder} was made {self.changed()}: remove that folder or give --output DIR"
            )

    def outdate(self) -> None:
        """Writes down that what is there is of runs that are no more, where nobody wrote of what.

        Else it would count as done as soon as they are there again.
        """
        if self.changed() and provenance.kept(self.folder) is None:
            provenance.Made({}, {}).write(self.folder)

    def _made(self) -> provenance.Made:
        found = {run.name: provenance.digest(run.folder / run.result) for run in self.of}
        return provenance.Made(self.told, found)

    def start(self, with_parent: bool = False) -> list[str] | None:
        """Starts the process, from last.ckpt where there is one; returns its arguments.

        None while another process fills the folder. A run that is done by then is left as it is.
        `with_parent`: the process ends when this one does, whatever ends it.
        """
        self.lock = locked(self.folder / LOCK)
        if self.lock is None:
            return None
        self.told = provenance.told(self.command or self.arguments)
        if self.done():
            self.lock.close()
            return self.arguments
        self.make_ready()
        last = self.folder / LAST
        arguments = self.arguments + (["--ckpt_path", str(last)] if last.is_file() else [])
        self.process = started(arguments, self.folder / LOG, self.lock, with_parent)
        return arguments

    def make_ready(self) -> None:
        """Takes the marks away, and what was made of other settings; writes down these."""
        self.refuse_changed()
        for mark in (FAILED, DONE):
            (self.folder / mark).unlink(missing_ok=True)
        if self.changed():
            for name in OF_MEMBERS:
                shutil.rmtree(self.folder / name, ignore_errors=True)
        self._made().write(self.folder)

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
        if self.changed():
            return "changed"
        if (self.folder / FAILED).is_file():
            return "failed"
        return "stopped" if (self.folder / LOG).is_file() else "waiting"
