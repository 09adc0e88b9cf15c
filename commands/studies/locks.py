"""The lock on a run folder, which whoever fills it holds for as long as it lives."""

import fcntl
from pathlib import Path
from typing import IO


def locked(path: Path) -> IO[str] | None:
    """The lock, held until it is closed; None while somebody else has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("w")
    if not _taken(lock, fcntl.LOCK_EX):
        lock.close()
        return None
    return lock


def is_locked(path: Path) -> bool:
    """Whether somebody holds the lock."""
    if not path.is_file():
        return False
    with path.open() as lock:
        return not _taken(lock, fcntl.LOCK_SH)


def _taken(lock: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
