"""Carries a study out: starts what is not done when what it needs is, and reports at the end."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from consilium.experiments.config import ExperimentConfig
from consilium.experiments.executors import Engine
from consilium.experiments.plan import command_line
from consilium.experiments.progress import Progress
from consilium.experiments.run import Run

LOG = "study.log"
POLL = 0.25


@contextmanager
def ended_like_ctrl_c() -> Iterator[None]:
    """SIGTERM, which schedulers send, ends the runs as well, and does not leave them behind."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Runner:
    """Fills the run folders of a study; whatever is done already is left as it is."""

    def __init__(self, study: ExperimentConfig, folder: Path, engine: Engine) -> None:
        self.study, self.folder, self.engine = study, folder, engine
        self.failed: dict[str, str] = {}

    def run(self, chosen: list[Run], runs: list[Run]) -> int:
        """Runs what is chosen, then reports; 0 when nothing failed and every gate passed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with ended_like_ctrl_c():
                self._fill(chosen, {run.name: run for run in runs})
        except KeyboardInterrupt:
            print("stopped; the same command goes on from here")
            return 130
        return self._close(runs)

    def _fill(self, chosen: list[Run], runs: dict[str, Run]) -> None:
        """As many at a time as the engine takes; a failure stops only what needs the failed."""
        waiting, active = [run for run in chosen if not run.done()], list[Run]()
        for run in waiting:
            run.outdate()
        with Progress(chosen) as progress:
            try:
                while waiting or active:
                    waiting = [run for run in waiting if not self._in_vain(run)]
                    ready = [r for r in waiting if all(runs[n].done() for n in r.needs)]
                    if waiting and not active and not ready:
                        break  # what is missing was not chosen
                    for run in ready:  # those that others fill stay so until they are done
                        if len(active) < self.engine.slots:
                            active.append(run)  # first, so that it is stopped whatever happens
                            (waiting if self._start(run) else active).remove(run)
                    time.sleep(POLL)
                    active = [run for run in active if not self._ended(run)]
                    progress.update()
            finally:
                self.engine.stop(active)

    def _in_vain(self, run: Run) -> bool:
        lost = [name for name in run.needs if name in self.failed]
        if lost:
            self.failed[run.name] = f"it needs {', '.join(lost)}"
            self._note(f"{run.name}: not run: {self.failed[run.name]}")
        return bool(lost)

    def _start(self, run: Run) -> bool:
        arguments = self.engine.start(run)
        if arguments is not None:
            self._note(f"{run.name}: {command_line(arguments)}")
        return arguments is not None

    def _ended(self, run: Run) -> bool:
        if not self.engine.ended(run):
            return False
        if run.done():
            self._note(f"{run.name}: done")
        else:
            self.failed[run.name] = f"{run.complaint()} ({run.folder}/log.txt)"
            self._note(f"{run.name}: failed: {run.complaint()}")
        return True

    def _note(self, text: str) -> None:
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _close(self, runs: list[Run]) -> int:
        """Reports what there is and says the last words."""
        console = Console(soft_wrap=True)
        for name, why in self.failed.items():
            console.print(f"{name} failed: {why}", markup=False)
        left = [run.name for run in runs if not run.done()]
        if left:
            console.print(f"Not done: {', '.join(left)}.", markup=False)
        if len(left) == len(runs) or (left and not self.failed):
            return 1 if self.failed else 0
        from consilium.experiments import (
            report,  # torch and all: not before there is something to say
        )

        passed, lines = report.write(self.study, self.folder)
        for line in lines:
            console.print(line, markup=False)
        return 0 if passed and not self.failed else 1
