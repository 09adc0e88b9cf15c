"""Fits that are told to stop, and folders that two of them are after: in processes of their own."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from consilium.cli.main import main
from consilium.experiments import provenance
from consilium.experiments.locks import held, is_locked, locked
from consilium.experiments.run import FAILED, Run
from consilium.experiments.run_lock import filling
from evaluation.results import read_results
from lightning_modules import checkpoints
from tests.conftest import ROOT, Tiny

ENDLESS = ["--trainer.max_epochs", "100000"]


def waited(process: subprocess.Popen[bytes], run: Path) -> None:
    """Waits for the fit's first epoch."""
    while not (run / "last.ckpt").is_file():
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)


def interruptible() -> None:
    """Ctrl-C reaches the process even where these tests themselves run in the background."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_ctrl_c_ends_a_fit_with_one_line_and_another_cannot_fill_its_folder(
    tiny: Tiny, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    fit = ["fit", *tiny.configs("endless"), *ENDLESS, "--run", str(run)]
    process = subprocess.Popen(
        [sys.executable, "-m", "consilium", *fit], cwd=ROOT, stderr=subprocess.PIPE,
        preexec_fn=interruptible,
    )  # fmt: skip
    waited(process, run)
    assert main(fit) == 2
    assert f"--run {run}: another process fills this folder\n" in capsys.readouterr().err
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1].decode().splitlines()[-1]
    assert process.returncode == 130
    epoch = checkpoints.read(run / "last.ckpt")[0].epoch
    again = f"the same command with --ckpt_path {run}/last.ckpt goes on"
    assert said == f"consilium fit: stopped after epoch {epoch}; {again}"
    assert not is_locked(run / ".lock")


def test_a_run_of_a_study_that_is_told_to_end_is_stopped_and_goes_on(
    tiny: Tiny, tmp_path: Path
) -> None:
    fit = ["fit", *tiny.configs("endless"), "--run", str(tmp_path / "run"), *ENDLESS]
    run = Run("run", tmp_path / "run", fit)
    assert run.start() == fit
    assert run.process is not None
    waited(run.process, run.folder)
    run.stop()
    assert run.process.returncode == 143
    assert run.complaint().startswith("consilium fit: stopped after epoch ")
    assert run.state().word == "stopped"
    assert not (run.folder / FAILED).exists()
    run.arguments[-1] = str(run.state().epoch)  # an end, which is another setting
    (run.folder / provenance.FILE).unlink()
    assert run.start() == [*fit, "--ckpt_path", str(run.folder / "last.ckpt")]
    run.wait()
    assert run.state().word == "done", run.complaint()
    assert read_results(run.folder / "results.json").split == "test"


def test_a_folder_that_was_filled_with_nothing_is_gone(tmp_path: Path) -> None:
    run = tmp_path / "new" / "run"
    with filling(run):
        assert is_locked(run / ".lock")
    assert not (tmp_path / "new").exists()
    with filling(run):
        (run / "kept").touch()
    assert (run / "kept").is_file()
    assert not is_locked(run / ".lock")


def test_a_lock_is_ones_own_or_that_of_another(tmp_path: Path) -> None:
    """A child process holds what it was started with; another one does not."""
    path = tmp_path / ".lock"
    lock = locked(path)
    assert lock is not None
    assert held(path)
    asked = "from commands.locks import held; from pathlib import Path; import sys; "
    command = [sys.executable, "-c", f"{asked} print(held(Path(sys.argv[1])))", str(path)]
    for descriptors, said in (([lock.fileno()], b"True\n"), ([], b"False\n")):
        found = subprocess.run(command, cwd=ROOT, pass_fds=descriptors, capture_output=True)
        assert found.stdout == said
    lock.close()
    assert not held(path)
