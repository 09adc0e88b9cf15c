"""Interrupted fits, and run folders that two processes want, in processes of their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from consilium.cli.main import main
from consilium.training.run_lock import acquire_lock, is_locked, lock_run_folder, owns_lock
from lightning_modules import checkpoints
from tests.conftest import ROOT, Tiny
from tests.consilium.test_processes import reset_sigint

ENDLESS = ["--trainer.max_epochs", "100000"]


def wait_for_first_epoch(process: subprocess.Popen[bytes], run: Path) -> None:
    while not (run / "last.ckpt").is_file():
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)


@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("number", "num_workers", "code"),
    [(signal.SIGINT, 0, 130), (signal.SIGTERM, 1, 143)],
    ids=["Ctrl-C", "SIGTERM"],
)
def test_a_signal_ends_a_fit_with_one_line_and_its_folder_is_locked_until_then(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, num_workers: int,
    code: int,
) -> None:  # fmt: skip
    """Schedulers send SIGTERM to all processes, loader workers included."""
    run = tmp_path / "run"
    workers = ["--data.init_args.num_workers", str(num_workers)]
    fit = ["fit", *tiny.configs("endless"), *ENDLESS, *workers, "--run", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "consilium", *fit], cwd=ROOT, stderr=subprocess.PIPE,
        preexec_fn=reset_sigint, start_new_session=True,
    )  # fmt: skip
    wait_for_first_epoch(process, run)
    assert main(fit) == 2
    error = capsys.readouterr().err
    assert f"--run {run}: run folder is locked by another process\n" in error
    os.killpg(process.pid, number)
    last_line = process.communicate()[1].decode().splitlines()[-1]
    assert process.returncode == code
    epoch = checkpoints.read(run / "last.ckpt")[0].epoch
    hint = f"to resume, add --ckpt_path {run}/last.ckpt to the command"
    assert last_line == f"consilium fit: stopped after epoch {epoch}; {hint}"
    assert not is_locked(run / ".lock")


def test_folder_without_files_is_removed_after_the_lock(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    with lock_run_folder(run):
        assert is_locked(run / ".lock")
    assert not (tmp_path / "new").exists()
    with lock_run_folder(run):
        (run / "file").touch()
    assert (run / "file").is_file()
    assert not is_locked(run / ".lock")


def test_a_process_owns_a_lock_that_it_took_or_inherited(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    lock = acquire_lock(path)
    assert lock is not None
    assert owns_lock(path)
    code = ("import sys; from pathlib import Path; from consilium.training.run_lock import "
            "owns_lock; print(owns_lock(Path(sys.argv[1])))")  # fmt: skip
    command = [sys.executable, "-c", code, str(path)]
    for descriptors, output in (([lock.fileno()], b"True\n"), ([], b"False\n")):
        child = subprocess.run(command, cwd=ROOT, pass_fds=descriptors, capture_output=True)
        assert child.stdout == output
    lock.close()
    assert not owns_lock(path)
