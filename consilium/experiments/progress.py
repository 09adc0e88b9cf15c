"""The table that shows where the runs of a study stand: live in a terminal, lines elsewhere."""

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from consilium.experiments.run import Run
from consilium.experiments.state import State

SHOWN = ("val/loss", "val/accuracy")
NARROW = 16  # least width of the column of names
SPIN = "|/-\\"


class Progress:
    """Watches run folders; `update` looks again."""

    def __init__(self, runs: list[Run]) -> None:
        self.runs = runs
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False)
        self.said: dict[str, tuple[str, int]] = {}
        self.ticks = 0
        self.width = max([NARROW, *(len(run.name) for run in runs)])

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
            self.update()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.update()
        if self.console.is_terminal:
            self.live.stop()

    def update(self) -> None:
        """Draws the table anew, or prints a line for each run that has moved."""
        self.ticks += 1
        states = {run.name: run.state() for run in self.runs}
        if self.console.is_terminal:
            self.live.update(self._table(states), refresh=True)
            return
        for name, state in states.items():
            if self.said.get(name) != (state.word, state.epoch):
                self.said[name] = (state.word, state.epoch)
                print(line(name, state, self.width), flush=True)

    def _table(self, states: dict[str, State]) -> Table:
        table = Table(box=None, pad_edge=False)
        for column in ("run", "", "", "epoch", *SHOWN, "best loss", "left"):
            table.add_column(column, justify="left" if column in ("run", "") else "right")
        for name, state in states.items():
            spin = f" {SPIN[self.ticks % len(SPIN)]}" if state.word == "running" else ""
            bar = ProgressBar(total=state.epochs or 1, completed=done(state), width=24)
            table.add_row(name, state.word + spin, bar, *numbers(state))
        return table


def done(state: State) -> int:
    """How much of the bar is full."""
    return (state.epochs or 1) if state.word == "done" else state.epoch


def numbers(state: State) -> list[str]:
    """Epoch, figures of the last epoch, the best loss so far and the time left, as text."""
    epoch = f"{state.epoch}/{state.epochs}" if state.epochs else ""
    figures = state.figures or {}
    shown = [f"{figures[key]:.4f}" if key in figures else "" for key in SHOWN]
    best = "" if state.best is None else f"{state.best:.4f}"
    left = (state.epochs - state.epoch) * figures.get("seconds", 0.0)
    return [epoch, *shown, best, time(left) if left and state.word == "running" else ""]


def time(seconds: float) -> str:
    """`45 s`, `12 min`, `3 h 20 min`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def line(name: str, state: State, width: int) -> str:
    """One line that says where a run stands, its name in a column of this width."""
    epoch, loss, accuracy, best, left = numbers(state)
    parts = [f"epoch {epoch}" if epoch else "", f"val loss {loss}" if loss else ""]
    parts += [f"val accuracy {accuracy}" if accuracy else "", f"best loss {best}" if best else ""]
    parts += [f"{left} left" if left else ""]
    return f"{name:<{width}} {state.word:<8} {'  '.join(filter(None, parts))}".rstrip()
