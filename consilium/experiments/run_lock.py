"""How a run folder is filled: by one process at a time, which may be told to stop."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from consilium.cli.errors import INTERRUPTED, TERMINATED, Stopped
from consilium.experiments.locks import LOCK, held, locked
from lightning_modules import checkpoints


@contextmanager
def filling(folder: Path) -> Iterator[None]:
    """Holds the folder's lock; whoever started this process may hold it for it.

    Of the processes of one fit the first holds it. A folder in which nothing was written is gone
    afterwards.
    """
    lock = folder / LOCK
    if not is_first() or held(lock):
        yield
        return
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    taken = locked(lock)
    if taken is None:
        raise ValueError(f"--run {folder}: another process fills this folder")
    with taken:
        try:
            yield
        finally:
            _sweep(lock, new)


@contextmanager
def stoppable(folder: Path, verb: str) -> Iterator[None]:
    """Turns what Lightning makes of SIGTERM and of Ctrl-C into Stopped.

    Processes beside the first end with 0, as Lightning has it: from any other code it would
    conclude that the first must be killed.
    """
    try:
        yield
    except SystemExit as end:
        by_key = isinstance(end.__context__, KeyboardInterrupt)
        if not is_first() or not (by_key or isinstance(end, SIGTERMException)):
            raise
        said = how_to_go_on(folder) if verb == "fit" else "stopped before its end"
        raise Stopped(said, INTERRUPTED if by_key else TERMINATED) from None


def how_to_go_on(folder: Path) -> str:
    """The last epoch that a fit has kept, and the way on from there."""
    last = folder / "last.ckpt"
    if not last.is_file():
        return "stopped before the end of an epoch; the same command begins anew"
    epoch = checkpoints.read(last, mapped=True)[0].epoch
    return f"stopped after epoch {epoch}; the same command with --ckpt_path {last} goes on"


def say(line: str) -> None:
    """Prints a line, once for all processes."""
    if is_first():
        print(line, flush=True)


def is_first() -> bool:
    """Whether this is the first of a fit's processes, on whatever machine the others are."""
    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def _sweep(lock: Path, new: list[Path]) -> None:
    """Takes a lock away together with the new folders that hold nothing else."""
    with suppress(OSError):
        if new and [path.name for path in lock.parent.iterdir()] == [lock.name]:
            lock.unlink()
            for folder in new:
                folder.rmdir()
