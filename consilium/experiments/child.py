"""A process that carries out a command of this tree and holds a lock for as long as it lives."""

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO

from consilium import ROOT

PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


def started(
    arguments: list[str], log: Path, lock: IO[str], with_parent: bool
) -> subprocess.Popen[bytes]:
    """The process, whose words go to `log`; `with_parent`: it ends when this one does."""
    with log.open("ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-P", "-m", "consilium", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            env=_environment(),
            pass_fds=[lock.fileno()],
            preexec_fn=_end_with_parent if with_parent else None,
        )


def _environment() -> dict[str, str]:
    """This tree first, so that members run the code that started them."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}


def _end_with_parent() -> None:
    """Asks Linux for SIGKILL when the parent dies; elsewhere it is not to be had."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
