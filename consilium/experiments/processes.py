"""Processes of runs: forks of one process that has imported everything, or fresh interpreters."""

import ctypes
import gc
import importlib
import io
import os
import random
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from typing import IO, Protocol

from consilium import IS_INSTALLED, ROOT

POLL_SECONDS = 0.02
#: What most commands import; importing them starts no thread of Python.
PRELOADED = (
    "callbacks",
    "consilium.inference.saliency_evaluation",
    "consilium.training.lightning_cli",
    "evaluation.reports.ensemble",
    "evaluation.reports.run",
)
PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>


class Process(Protocol):
    """What a scheduler needs of a process; `subprocess.Popen` is one."""

    returncode: int | None

    def poll(self) -> int | None:
        """The exit code, None while the process runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end and returns the exit code."""

    def terminate(self) -> None:
        """Sends SIGTERM."""

    def kill(self) -> None:
        """Sends SIGKILL."""


#: Starts `consilium ARGUMENTS` with a log that its output is appended to, a lock to inherit, and a
#: number of OpenMP threads (0 for that of the environment).
Launcher = Callable[[list[str], IO[bytes], IO[str], int], Process]


def start_interpreter(
    arguments: list[str], log: IO[bytes], lock: IO[str], threads: int = 0
) -> Process:
    """Starts a command in an interpreter of its own, which ends with this process."""
    return _start_python(["-m", "consilium", *arguments], log, lock.fileno(), threads)


def run_environment(threads: int = 0) -> dict[str, str]:
    """Environment variables of a run, with this source tree first so that it uses the same code."""
    tree = "" if IS_INSTALLED else str(ROOT)
    path = os.pathsep.join(filter(None, [tree, os.environ.get("PYTHONPATH", "")]))
    own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "120"}
    return {**os.environ, **own, **({"OMP_NUM_THREADS": str(threads)} if threads else {})}


def start_fork(arguments: list[str], log: IO[bytes], lock: IO[str], threads: int = 0) -> Process:
    """Starts a command as a fork of the process that all forks of this program share.

    Only on Linux: system libraries of macOS do not survive a fork.
    """
    launch = _SHARED_SERVER.start if sys.platform == "linux" else start_interpreter
    return launch(arguments, log, lock, threads)


def fork_server_of_this_process() -> None:
    """Lets the forks of this program share the modules that it has imported.

    Only for a program that is about to start runs and has used neither threads nor a GPU: without
    this, the first run starts an interpreter that imports everything again.
    """
    if sys.platform == "linux":
        _SHARED_SERVER.fork()


class ForkServer:
    """Starts commands as forks of one process that imports torch and Lightning only once.

    Imports take several seconds per interpreter, a fork takes milliseconds. The forking process
    starts with the first command or by `fork`, and ends with this process; so do the forks
    (those of multiprocessing's forkserver outlive a killed program and keep its locks).
    """

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._server_pid = 0
        self._wait_for_server: Callable[[], object]
        self._running: dict[int, ForkedProcess] = {}

    def fork(self) -> None:
        """Starts the forking process as a fork of this one."""
        self._connection, theirs = Pipe()
        sys.stdout.flush()
        program = os.getpid()
        self._server_pid = os.fork()
        if self._server_pid == 0:
            _end_with_parent(program)
            self._connection.close()
            serve(theirs)
            os._exit(0)
        theirs.close()
        self._wait_for_server = partial(os.waitpid, self._server_pid, 0)

    def start(
        self, arguments: list[str], log: IO[bytes], lock: IO[str], threads: int = 0
    ) -> Process:
        """Starts a command; it is a `Launcher`."""
        self.collect()
        if self._connection is None:
            self._connection, theirs = Pipe()
            code = f"from {__name__} import Connection, serve; serve(Connection({theirs.fileno()}))"
            server = _start_python(["-c", code], log, theirs.fileno())
            theirs.close()
            self._server_pid, self._wait_for_server = server.pid, server.wait
        try:
            self._connection.send((arguments, run_environment(threads), Path.cwd()))
            for file in (log, lock):
                send_handle(self._connection, file.fileno(), self._server_pid)
            while not isinstance(pid := self._connection.recv(), int):
                self._record_end(*pid)
        except (EOFError, OSError):  # its imports failed; the log has the error
            self._mark_all_killed()
            return ForkedProcess(self, 0, 1)
        self._running[pid] = ForkedProcess(self, pid)
        return self._running[pid]

    def collect(self) -> None:
        """Sets the exit codes of processes that have ended; all were killed if the server was."""
        try:
            while self._connection is not None and self._connection.poll():
                self._record_end(*self._connection.recv())
        except (EOFError, OSError):
            self._mark_all_killed()

    def _record_end(self, pid: int, code: int) -> None:
        """Sets the exit code of a process."""
        self._running.pop(pid).returncode = code

    def _mark_all_killed(self) -> None:
        """Closes the connection to an ended server and records that its forks were killed."""
        if self._connection is not None:
            self._connection.close()
            self._wait_for_server()
        self._connection = None
        for pid in list(self._running):
            self._record_end(pid, -signal.SIGKILL)


class ForkedProcess:
    """A process that a ForkServer forked."""

    def __init__(self, server: ForkServer, pid: int, returncode: int | None = None) -> None:
        self.server, self.pid, self.returncode = server, pid, returncode

    def poll(self) -> int | None:
        """The exit code, None while the process runs."""
        self.server.collect()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Waits for the end and returns the exit code."""
        start = time.monotonic()
        while (code := self.poll()) is None:
            if timeout is not None and time.monotonic() - start > timeout:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout)
            time.sleep(POLL_SECONDS)
        return code

    def terminate(self) -> None:
        """Sends SIGTERM."""
        self._send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._send_signal(signal.SIGKILL)

    def _send_signal(self, number: int) -> None:
        """Sends a signal unless the process has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)


_SHARED_SERVER = ForkServer()


def serve(connection: Connection) -> None:
    """Imports everything, then forks a process per request until the connection is closed."""
    handlers = {number: signal.signal(number, signal.SIG_IGN) for number in _SIGNALS}
    for module in PRELOADED:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a fork neither scans nor copies what was imported
    server, children = os.getpid(), set[int]()
    while True:
        try:
            if connection.poll(POLL_SECONDS if children else None):
                arguments, environment, directory = connection.recv()
                files = [recv_handle(connection) for _ in range(2)]
                pid = os.fork()
                if pid == 0:
                    _end_with_parent(server)
                    break
                children.add(pid)
                connection.send(pid)
                for file in files:
                    os.close(file)
            while children and (ended := os.waitpid(-1, os.WNOHANG))[0]:
                children.remove(ended[0])
                connection.send((ended[0], os.waitstatus_to_exitcode(ended[1])))
        except (EOFError, OSError):
            return
    connection.close()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    os.chdir(directory)
    _become_command(arguments, environment, *files)


_SIGNALS = (signal.SIGINT, signal.SIGTERM)  # also sent to the whole process group; for the runs


def _become_command(arguments: list[str], environment: dict[str, str], log: int, lock: int) -> None:
    """Runs `python -m consilium ARGUMENTS` in this fork, given two descriptors; then exits."""
    import torch

    for stream in (1, 2):
        os.dup2(log, stream)
    os.close(log)
    for text in (sys.stdout, sys.stderr):
        if isinstance(text, io.TextIOWrapper):
            text.reconfigure(write_through=True)  # as PYTHONUNBUFFERED in a new interpreter
    os.set_inheritable(lock, True)
    os.environ.clear()
    os.environ.update(environment)
    if threads := environment.get("OMP_NUM_THREADS"):
        torch.set_num_threads(int(threads))
    random.seed()
    torch.seed()
    sys.argv = ["consilium", *arguments]
    runpy.run_module("consilium", run_name="__main__", alter_sys=True)


def _start_python(
    arguments: list[str], log: IO[bytes], descriptor: int, threads: int = 0
) -> subprocess.Popen[bytes]:
    """Starts an interpreter that inherits a file descriptor and ends with this process."""
    return subprocess.Popen(
        [sys.executable, "-P", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=run_environment(threads),
        pass_fds=[descriptor],
        preexec_fn=partial(_end_with_parent, os.getpid()),
    )


def _end_with_parent(parent: int) -> None:
    """Has this process killed when its parent (a process id) dies; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the request
            os._exit(128 + signal.SIGKILL)
