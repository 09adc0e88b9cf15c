"""Where a run stands, as its folder says it."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd
import yaml

CHOSEN = "val/loss"  # the best epoch is chosen by it


@dataclass(frozen=True)
class State:
    """Where a run stands.

    Args:
        word: waiting, running, stopped, failed, done, or changed: made with other settings.
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


def progress(folder: Path) -> tuple[int, dict[str, float] | None, float | None]:
    """Epochs completed, figures of the last one, and the best epoch's loss."""
    path = folder / "history.csv"
    if not path.is_file():
        return 0, None, None
    history = pd.read_csv(path)
    last = history.iloc[-1].to_dict()
    best = float(history[CHOSEN].min()) if CHOSEN in history else None
    return int(last["epoch"]) + 1, {str(k): float(v) for k, v in last.items()}, best


def planned(folder: Path) -> int:
    """Epochs planned, 0 while unknown."""
    path = folder / "config.yaml"
    return _epochs(path, path.stat().st_mtime_ns) if path.is_file() else 0


@cache
def _epochs(path: Path, written: int) -> int:
    """The file is read again only when it was written anew."""
    return int(yaml.safe_load(path.read_text())["trainer"]["max_epochs"] or 0)
