"""Which run folder a run may use, the lock on it, and the exception of a run that was stopped.

Importing this module does not import torch: the command line needs it before that.
"""

import argparse
import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from consilium.config_files import read_config, resolve_references

LOCK_FILE = ".lock"  # in the run folder
RESULTS = ("results.json", "results.val.json")
UNFINISHED = ("last.ckpt", "previous.ckpt")  # of `callbacks.checkpoint`, which imports torch
REMEDY = "give another --run, or remove the folder"
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
    inherited the lock from the one that started it. At the end a new, empty folder is removed.
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
            with suppress(OSError):
                if new_folders and [entry.name for entry in folder.iterdir()] == [LOCK_FILE]:
                    path.unlink()
                    for parent in new_folders:
                        parent.rmdir()


def acquire_lock(path: Path) -> IO[str] | None:
    """Locks a file and returns it; closing it releases the lock. None if another process has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.open("w")
    if _try_flock(lock, fcntl.LOCK_EX):
        return lock
    lock.close()
    return None


def is_locked(path: Path) -> bool:
    """Whether any process has the lock on a file."""
    if not path.is_file():
        return False
    with path.open() as lock:
        return not _try_flock(lock, fcntl.LOCK_SH)


def owns_lock(path: Path) -> bool:
    """Whether this process has the lock on a file, by its own or an inherited descriptor."""
    for number in [int(entry.name) for entry in Path("/dev/fd").iterdir()]:
        with suppress(OSError):  # no such file; or the descriptor that listed /dev/fd is closed
            is_same_file = os.path.samestat(os.fstat(number), path.stat())
            if is_same_file and _try_flock(number, fcntl.LOCK_EX):
                return True
    return False


def given_options(args: Sequence[str]) -> argparse.Namespace:
    """The values of --config, --model, --ckpt_path and --run, which decide on config files."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--config", "-c", action="append", default=[])
    for name in ("--model", "--ckpt_path", "--run"):
        parser.add_argument(name)
    return parser.parse_known_args(args)[0]


def refuse_used_run_folder(folder: Path) -> None:
    """Raises ValueError if a fit would overwrite another run."""
    refuse_finished_run(folder)
    for file in (folder / name for name in UNFINISHED):
        if file.exists():
            resume = f"resume it with --ckpt_path {file}"
            raise ValueError(f"--run {folder}: contains an unfinished run; {resume}, {REMEDY}")


def refuse_finished_run(folder: Path, problem: str = "") -> None:
    """Raises ValueError, which begins with the problem, if a fit would overwrite results."""
    if any((folder / name).exists() for name in RESULTS):
        message = f"--run {folder}: contains a finished run; {REMEDY}"
        raise ValueError(f"{problem}; {message}" if problem else message)


def refuse_used_run(args: Sequence[str]) -> None:
    """`refuse_used_run_folder` for the arguments of a fit, before seconds of imports.

    Nothing is refused here if the arguments or their files may ask for a resume or a trial.
    """
    given = given_options(args)
    files = [Path(file) for file in given.config]
    if not given.run or not all(file.is_file() for file in files):
        return
    settings = [resolve_references(file.parent, read_config(file)) for file in files]
    text, others = repr((args, settings)), ("ckpt_path", "fast_dev_run", "help", "print_config")
    if not any(name in text for name in others) and not is_locked(Path(given.run) / LOCK_FILE):
        refuse_used_run_folder(Path(given.run))


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


def _try_flock(lock: IO[str] | int, kind: int) -> bool:
    """Tries to lock an open file (`kind` is LOCK_EX or LOCK_SH); whether that succeeded."""
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
