"""Processes of runs: forks of this process after it has imported torch, or fresh interpreters."""

import ctypes
import gc
import importlib
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from multiprocessing.context import ForkProcess
from typing import IO

from consilium import ROOT

#: What most commands import; importing them starts no thread of Python.
PRELOADED = (
    "callbacks",
    "consilium.inference.saliency_evaluation",
    "consilium.training.lightning_cli",
    "evaluation.reports.ensemble",
    "evaluation.reports.run",
)
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class ForkedProcess(ForkProcess):
    """`consilium ARGUMENTS` as a fork of this process, with the interface of subprocess.Popen.

    Imports take several seconds per interpreter, a fork takes milliseconds.
    """

    def __init__(self, arguments: list[str], log: IO[bytes], lock: IO[str]) -> None:
        super().__init__(daemon=True)  # this program ends it at its own end
        self._arguments, self._log, self._lock = arguments, log, lock

    def run(self) -> None:
        """Turns the fork into `python -m consilium ARGUMENTS`; ends with SystemExit."""
        import torch

        self.daemon = False  # a daemon could not start loader workers
        _end_with_parent()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream in (1, 2):
            os.dup2(self._log.fileno(), stream)
        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, encoding="utf-8")
        self._log.close()
        os.set_inheritable(self._lock.fileno(), True)
        os.environ.update(run_environment())
        torch.seed()
        sys.argv = ["consilium", *self._arguments]
        runpy.run_module("consilium", run_name="__main__", alter_sys=True)

    @property
    def returncode(self) -> int | None:
        """The exit code, None while the process runs."""
        return self.exitcode

    def poll(self) -> int | None:
        """The exit code, None while the process runs."""
        return self.exitcode

    def wait(self, timeout: float | None = None) -> int | None:
        """Waits for the end and returns the exit code."""
        self.join(timeout)
        if self.exitcode is None and timeout is not None:
            raise subprocess.TimeoutExpired(self.name, timeout)
        return self.exitcode


Process = ForkedProcess | subprocess.Popen[bytes]
#: Starts `consilium ARGUMENTS` with a log that its output is appended to and a lock to inherit.
Launcher = Callable[[list[str], IO[bytes], IO[str]], Process]


def start_fork(arguments: list[str], log: IO[bytes], lock: IO[str]) -> Process:
    """Starts a command as a fork of this process, which ends with it.

    Only on Linux: system libraries of macOS do not survive a fork.
    """
    if sys.platform != "linux":
        return start_interpreter(arguments, log, lock)
    _preload()
    process = ForkedProcess(arguments, log, lock)
    process.start()
    return process


def start_interpreter(arguments: list[str], log: IO[bytes], lock: IO[str]) -> Process:
    """Starts a command in an interpreter of its own, which ends with this process."""
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "consilium", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=run_environment(),
        pass_fds=[lock.fileno()],
        preexec_fn=_end_with_parent,
    )


def run_environment() -> dict[str, str]:
    """The environment with this source tree first, so that runs use the code that started them."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}


@cache
def _preload() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a fork neither scans nor copies what was imported


def _end_with_parent() -> None:
    """Requests SIGKILL when the parent dies; only Linux has this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
