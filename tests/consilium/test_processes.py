"""Runs as forks of one process: kills of a fork, of that process, and of the program."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest

from consilium.experiments.processes import ForkedProcess, start_fork
from consilium.training.run_lock import acquire_lock, is_locked
from tests.conftest import ROOT, Tiny


@pytest.fixture
def endless(tiny: Tiny) -> list[str]:
    """Arguments of a fit that does not end by itself."""
    return ["fit", *tiny.configs("endless"), "--trainer.max_epochs", "100000"]


def start(folder: Path, arguments: list[str]) -> ForkedProcess:
    """A process that has the lock of a folder and writes its log into it."""
    lock = acquire_lock(folder / ".lock")
    assert lock is not None
    with lock, (folder / "log.txt").open("ab") as log:
        process = start_fork(arguments, log, lock)
    assert isinstance(process, ForkedProcess)
    return process


def wait_for(file: Path, process: ForkedProcess) -> None:
    while not file.is_file():
        assert process.poll() is None, file.with_name("log.txt").read_text()
        time.sleep(0.02)


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().split()[3])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def test_a_fork_has_a_log_a_lock_and_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    audit = start(tmp_path / "audit", ["audit", "images", "-o", "out"])
    assert audit.wait() != 0
    assert "images" in (tmp_path / "audit/log.txt").read_text()
    first = start(tmp_path / "first", ["--version"])
    second = start(tmp_path / "second", ["inspect", "missing.ckpt"])
    assert (first.wait(), second.wait()) == (0, 2)
    assert (tmp_path / "first/log.txt").read_text().startswith("consilium ")
    assert "missing.ckpt" in (tmp_path / "second/log.txt").read_text()
    assert not is_locked(tmp_path / "first/.lock")
    assert first.pid != second.pid


def test_a_killed_fork_does_not_harm_another(endless, tmp_path):
    killed, other = (
        start(tmp_path / name, [*endless, "--run", str(tmp_path / name)])
        for name in ("killed", "other")
    )
    wait_for(tmp_path / "killed/last.ckpt", killed)
    assert is_locked(tmp_path / "killed/.lock")  # the fork inherited it
    killed.kill()
    assert killed.wait() == -signal.SIGKILL
    assert not is_locked(tmp_path / "killed/.lock")
    wait_for(tmp_path / "other/last.ckpt", other)
    other.terminate()
    assert other.wait() == 128 + signal.SIGTERM
    assert "stopped after epoch" in (tmp_path / "other/log.txt").read_text()


@pytest.mark.exhaustive
def test_forks_end_with_the_process_that_forked_them_and_the_next_start_works(endless, tmp_path):
    process = start(tmp_path, [*endless, "--run", str(tmp_path)])
    os.kill(parent_of(process.pid), signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    while is_alive(process.pid):
        time.sleep(0.02)
    assert not is_locked(tmp_path / ".lock")
    assert start(tmp_path, ["--version"]).wait() == 0


ORPHAN = """
import os, sys, time
from pathlib import Path
from consilium.experiments.processes import _end_with_parent
parent = os.getpid()
if os.fork():
    os._exit(0)
while os.getppid() == parent:
    time.sleep(0.01)
Path(sys.argv[1]).touch()
_end_with_parent(parent)
Path(sys.argv[2]).touch()
"""


def test_a_fork_ends_although_its_parent_was_dead_before_it_could_ask_for_that(tmp_path):
    orphaned, survived = tmp_path / "orphaned", tmp_path / "survived"
    subprocess.run([sys.executable, "-c", ORPHAN, orphaned, survived], cwd=ROOT,
                   stdout=subprocess.PIPE, check=True)  # fmt: skip
    assert orphaned.is_file()  # the pipe closes when the fork has ended
    assert not survived.exists()


def reset_sigint() -> None:
    """Lets Ctrl-C reach a process even if the tests run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


PROGRAM = """
import sys
from pathlib import Path
from consilium.experiments.processes import fork_server_of_this_process
from tests.consilium.test_processes import start
folder, arguments = Path(sys.argv[1]), sys.argv[3:]
if sys.argv[2] == "fork":
    fork_server_of_this_process()
process = start(folder, arguments)
print(process.pid, flush=True)
process.wait()
"""


@pytest.mark.exhaustive
@pytest.mark.parametrize("server", ["start", "fork"])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_forks_end_with_the_program(number, server, endless, tmp_path):
    arguments = [str(tmp_path), server, *endless, "--run", str(tmp_path)]
    program = subprocess.Popen([sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT,
                               stdout=subprocess.PIPE, start_new_session=True,
                               preexec_fn=reset_sigint)  # fmt: skip
    stream: IO[bytes] | None = program.stdout
    assert stream is not None
    pid = int(stream.readline())
    programs = [Path(f"/proc/{i}/cmdline").read_bytes() for i in (program.pid, parent_of(pid))]
    assert (programs[0] == programs[1]) == (server == "fork")
    os.kill(program.pid, number) if number == signal.SIGKILL else os.killpg(program.pid, number)
    program.wait()
    while is_alive(pid) or is_locked(tmp_path / ".lock"):
        time.sleep(0.02)
