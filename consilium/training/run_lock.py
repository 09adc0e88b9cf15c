"""The lock on a run folder, and the exception of a run that was stopped by a signal.

Importing this module does not import torch: the command line needs the exception before that.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

LOCK_FILE = ".lock"  # in the run folder
EXIT_INTERRUPTED, EXIT_TERMINATED = 130, 143  # 128 plus the number of SIGINT, of SIGTERM


class RunStopped(Exception):
    """A run that a signal stopped before its end; `code` is the exit code of the process."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@contextmanager
def lock_run_folder(folder: Path) -> Iterator[None]:
    """Locks a run folder, or raises ValueError while another process has its lock.

    With several processes per run, the first one takes the lock. Nothing is done if this process
    inherited the lock from the one that started it. A folder that is still empty is removed.
    """
    path = folder / LOCK_FILE
    if not is_first_process() or owns_lock(path):
        yield
        return
    new_folders = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    lock = acquire_lock(path)
    if lock is None:
        raise ValueError(f"--run {folder}: run folder is locked by another process")
    with lock:
        try:
            yield
        finally:
            _remove_if_empty(path, new_folders)


def acquire_lock(path: Path) -> IO[str] | None:
    """The open, locked file; closing it releases the lock. None while another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("w")
    if not _try_flock(lock, fcntl.LOCK_EX):
        lock.close()
        return None
    return lock


def is_locked(path: Path) -> bool:
    """Whether any process has the lock."""
    if not path.is_file():
        return False
    with path.open() as lock:
        return not _try_flock(lock, fcntl.LOCK_SH)


def owns_lock(path: Path) -> bool:
    """Whether this process has the lock, by its own or an inherited file descriptor."""
    descriptors = [int(entry.name) for entry in Path("/dev/fd").iterdir()]
    return path.is_file() and any(_is_locked_by(number, path) for number in descriptors)


@contextmanager
def raise_run_stopped(folder: Path, command: str) -> Iterator[None]:
    """Turns Lightning's exit after SIGTERM or Ctrl-C into RunStopped.

    Ranks other than 0 exit with 0 as Lightning has it: on any other code it kills rank 0.
    """
    from lightning.pytorch.utilities.exceptions import SIGTERMException

    try:
        yield
    except SystemExit as error:
        is_interrupt = isinstance(error.__context__, KeyboardInterrupt)
        is_signal = is_interrupt or isinstance(error, SIGTERMException)
        if not is_first_process() or not is_signal:
            raise
        message = resume_hint(folder) if command == "fit" else "stopped before its end"
        raise RunStopped(message, EXIT_INTERRUPTED if is_interrupt else EXIT_TERMINATED) from None


def resume_hint(folder: Path) -> str:
    """The last saved epoch of an interrupted fit, and how to resume it."""
    from lightning_modules import checkpoints

    last = folder / "last.ckpt"
    if not last.is_file():
        return "stopped before the end of the first epoch; run the same command to start again"
    epoch = checkpoints.read(last, mmap=True)[0].epoch
    return f"stopped after epoch {epoch}; to resume, add --ckpt_path {last} to the command"


def is_first_process() -> bool:
    """Whether this is rank 0 of all processes of the run, on all machines."""
    from lightning.fabric.utilities.rank_zero import rank_zero_only

    return getattr(rank_zero_only, "rank", 0) == 0 and os.environ.get("NODE_RANK", "0") == "0"


def print_once(line: str) -> None:
    """Prints a line from rank 0 only."""
    if is_first_process():
        print(line, flush=True)


def _is_locked_by(descriptor: int, path: Path) -> bool:
    """Whether a file descriptor is open on the lock file and has the exclusive lock."""
    with suppress(OSError):  # the descriptor that listed /dev/fd is closed by now
        is_same_file = os.path.samestat(os.fstat(descriptor), path.stat())
        return is_same_file and _try_flock(descriptor, fcntl.LOCK_EX)
    return False


def _try_flock(lock: IO[str] | int, kind: int) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_if_empty(lock: Path, new_folders: list[Path]) -> None:
    """Removes the lock and the folders created for it if they contain nothing else."""
    with suppress(OSError):
        if new_folders and [path.name for path in lock.parent.iterdir()] == [lock.name]:
            lock.unlink()
            for folder in new_folders:
                folder.rmdir()
