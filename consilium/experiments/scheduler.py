"""Scheduler of an experiment: starts runs when their inputs are done, shows progress, reports."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.text import Text

from consilium.experiments.config import ExperimentConfig
from consilium.experiments.executors import Executor
from consilium.experiments.plan import command_line
from consilium.experiments.run import Run, RunState
from consilium.training.run_lock import EXIT_INTERRUPTED

LOG = "experiment.log"
POLL_SECONDS = 0.25
MIN_NAME_WIDTH = 16


class Scheduler:
    """Fills the run folders of an experiment; runs that are done are not started again."""

    def __init__(self, config: ExperimentConfig, folder: Path, executor: Executor) -> None:
        self.config, self.folder, self.executor = config, folder, executor
        self.failures: dict[str, str] = {}

    def run(self, selected: list[Run], runs: list[Run]) -> int:
        """Executes the selected runs, then reports; 0 if nothing failed and every gate passed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            with _sigterm_as_keyboard_interrupt():
                self._execute(selected, {run.name: run for run in runs})
        except KeyboardInterrupt:
            print("stopped; the same command continues from here")
            return EXIT_INTERRUPTED
        return self._report(runs)

    def _execute(self, selected: list[Run], runs: dict[str, Run]) -> None:
        """Executes the selected runs; a failed one only stops those that need it."""
        for run in selected:
            if not run.is_done():
                run.mark_outdated()
                for needed in run.inputs:
                    needed.require_checkpoint()
        waiting, active = [run for run in selected if not run.is_done()], list[Run]()
        display = ProgressDisplay(selected)
        try:
            while waiting or active:
                waiting = [run for run in waiting if not self._has_failed_input(run)]
                ready = [r for r in waiting if all(runs[n].is_done() for n in r.needs)]
                if waiting and not active and not ready:
                    removed = self._removed_inputs(waiting, selected)
                    if not removed:
                        break  # the missing inputs were not selected
                    waiting = removed + waiting
                for run in ready:  # a run that is locked elsewhere waits until it is done
                    if len(active) < self.executor.slots:
                        active.append(run)  # before the start, so that it is always stopped
                        (waiting if self._start(run) else active).remove(run)
                display.update()
                time.sleep(POLL_SECONDS)
                active = [run for run in active if not self._has_ended(run)]
        finally:
            self.executor.stop(active)
            display.close()

    def _removed_inputs(self, waiting: list[Run], selected: list[Run]) -> list[Run]:
        """Selected runs that waiting ones need and that were done, but whose folders are gone."""
        needed = {name for run in waiting for name in run.needs} - self.failures.keys()
        return [r for r in selected if r.name in needed and r not in waiting and not r.is_done()]

    def _has_failed_input(self, run: Run) -> bool:
        """Whether a run that this one needs has failed; if so, counts this one as failed."""
        failed = [name for name in run.needs if name in self.failures]
        if failed:
            self.failures[run.name] = f"requires {', '.join(failed)}"
            self._log(f"{run.name}: not started: {self.failures[run.name]}")
        return bool(failed)

    def _start(self, run: Run) -> bool:
        """Starts a run and logs its command; False if another process has its folder."""
        arguments = self.executor.start(run)
        if arguments is not None:
            self._log(f"{run.name}: {command_line(arguments)}")
        return arguments is not None

    def _has_ended(self, run: Run) -> bool:
        """Whether a run has ended; if so, logs its success or failure."""
        if not self.executor.has_ended(run):
            return False
        if run.is_done():
            self._log(f"{run.name}: done")
        else:
            self.failures[run.name] = f"{run.error_message()} ({run.folder}/log.txt)"
            self._log(f"{run.name}: failed: {run.error_message()}")
        return True

    def _log(self, text: str) -> None:
        """Appends a line with the time to experiment.log."""
        with (self.folder / LOG).open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")

    def _report(self, runs: list[Run]) -> int:
        """Writes the report; returns 1 if a run failed or a gate of the report failed, else 0.

        No report if no run is done, or if runs are missing although none failed.
        """
        console = Console(soft_wrap=True)
        for name, reason in self.failures.items():
            console.print(f"{name} failed: {reason}", markup=False)
        missing = [run.name for run in runs if not run.is_done()]
        if missing:
            console.print(f"Not done: {', '.join(missing)}.", markup=False)
        if len(missing) == len(runs) or (missing and not self.failures):
            return 1 if self.failures else 0
        from consilium.experiments.report import write_experiment_report  # imports torch

        passed, lines = write_experiment_report(self.config, self.folder)
        console.print("\n".join(lines), markup=False)
        return 0 if passed and not self.failures else 1


@contextmanager
def _sigterm_as_keyboard_interrupt() -> Iterator[None]:
    """Raises KeyboardInterrupt on SIGTERM, which cluster schedulers send."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class ProgressDisplay:
    """Shows one line per run; `update` reads the run folders again."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False)
        if self.console.is_terminal:
            self.live.start()
        self.printed: dict[str, tuple[str, int]] = {}
        self.name_width = max([MIN_NAME_WIDTH, *(len(run.name) for run in runs)])

    def update(self) -> None:
        """Refreshes all lines, or prints a line for each run with a new status or epoch."""
        states = {run.name: run.state() for run in self.runs}
        lines = {name: status_line(name, s, self.name_width) for name, s in states.items()}
        if self.console.is_terminal:
            self.live.update(Text("\n".join(lines.values())), refresh=True)
            return
        for name, state in states.items():
            if self.printed.get(name) != (state.status, state.epoch):
                self.printed[name] = (state.status, state.epoch)
                print(lines[name], flush=True)

    def close(self) -> None:
        """Updates for the last time and restores the terminal."""
        self.update()
        self.live.stop()


def status_line(name: str, state: RunState, name_width: int) -> str:
    """Status, epoch, validation metrics and remaining time of a run on one line."""
    metrics = state.metrics or {}
    parts = [f"epoch {state.epoch}/{state.max_epochs}"] if state.max_epochs else []
    for key in ("val/loss", "val/accuracy"):
        parts += [f"{key} {metrics[key]:.4f}"] if key in metrics else []
    parts += [f"best loss {state.best:.4f}"] if state.best is not None else []
    seconds = (state.max_epochs - state.epoch) * metrics.get("seconds", 0.0)
    if seconds and state.status == "running":
        parts.append(f"{format_duration(seconds)} left")
    return f"{name:<{name_width}} {state.status:<8} {'  '.join(parts)}".rstrip()


def format_duration(seconds: float) -> str:
    """Seconds as text: `45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
