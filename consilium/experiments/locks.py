"""The lock on a run folder, which whoever fills it holds for as long as it lives."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

LOCK = ".lock"  # in the folder


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


def held(path: Path) -> bool:
    """Whether this process holds the lock: itself, or by a descriptor that it was started with."""
    opened = [int(each.name) for each in Path("/dev/fd").iterdir()]
    return path.is_file() and any(_locks(descriptor, path) for descriptor in opened)


def _locks(descriptor: int, path: Path) -> bool:
    """Whether a descriptor is open on the lock, and the lock is its own."""
    with suppress(OSError):  # the one that the others were listed through
        same = os.path.samestat(os.fstat(descriptor), path.stat())
        return same and _taken(descriptor, fcntl.LOCK_EX)
    return False


def _taken(lock: IO[str] | int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
