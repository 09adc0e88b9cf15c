"""Processes of runs: forks of this process after it has imported torch, or fresh interpreters."""

import ctypes
import gc
import importlib
import os
import runpy
import signal
import sys
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
CAN_FORK = sys.platform == "linux"  # system libraries of macOS do not survive a fork
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class Process(ForkProcess):
    """`consilium ARGUMENTS` as a fork of this process, with which it ends.

    Imports take several seconds per interpreter, a fork takes milliseconds; if `isolated`, the fork
    becomes a new interpreter nevertheless. The log gets its output, and it inherits the lock.
    """

    def __init__(
        self, arguments: list[str], log: IO[bytes], lock: IO[str], isolated: bool = False
    ) -> None:
        super().__init__(daemon=True)  # this program ends it at its own end
        self._arguments, self._log, self._lock = arguments, log, lock
        self._isolated = isolated or not CAN_FORK

    def start(self) -> None:
        """Starts the process; the first one that is not isolated imports everything before."""
        if not self._isolated:
            _preload()
        super().start()

    def run(self) -> None:
        """Turns the fork into `python -m consilium ARGUMENTS`; ends with SystemExit."""
        self.daemon = False  # a daemon could not start loader workers
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # when the parent dies
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        for stream in (1, 2):
            os.dup2(self._log.fileno(), stream)
        self._log.close()
        os.set_inheritable(self._lock.fileno(), True)
        os.environ.update(run_environment())
        if self._isolated:
            os.execv(sys.executable, [sys.executable, "-P", "-m", "consilium", *self._arguments])
        import torch

        sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1, encoding="utf-8")
        torch.seed()
        sys.argv = ["consilium", *self._arguments]
        runpy.run_module("consilium", run_name="__main__", alter_sys=True)


def run_environment() -> dict[str, str]:
    """Variables that put this source tree first, so that runs use the code that started them."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}


@cache
def _preload() -> None:
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a fork neither scans nor copies what was imported
