"""The best epoch by any metric survives a resume in the same, a renamed or another folder."""

import errno
import shutil
import tempfile
from pathlib import Path

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from callbacks import BestAndLastCheckpoint
from callbacks.checkpoint import ResumableEarlyStopping, resumable_checkpoint

VALUES = [0.1, 0.5, 0.9]


class WorseningModule(L.LightningModule):
    """The first epoch is the best by loss and ECE, the last by accuracy and AUROC."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.net(batch).sum()

    def validation_step(self, batch, batch_idx):
        for name in ("loss", "ece", "accuracy", "auroc", "dice"):
            self.log(f"val/{name}", VALUES[self.current_epoch])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(folder, epochs, resume=None, callbacks=None):
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_progress_bar": False,
               "enable_model_summary": False, "num_sanity_val_steps": 0}  # fmt: skip
    callbacks = callbacks or [BestAndLastCheckpoint()]
    trainer = L.Trainer(default_root_dir=folder, max_epochs=epochs, callbacks=callbacks, **options)
    data = DataLoader(torch.ones(2, 1))
    trainer.fit(WorseningModule(), data, data, ckpt_path=resume, weights_only=True)


def epoch_of(file):
    return torch.load(file, weights_only=True)["epoch"]


def test_a_checkpoint_is_written_without_the_folder_of_temporary_files(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    fit(tmp_path / "run", 1)
    assert epoch_of(tmp_path / "run/last.ckpt") == 0


def test_an_error_while_a_checkpoint_is_written_leaves_the_one_before(tmp_path, monkeypatch):
    fit(tmp_path, 1)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def save_half(checkpoint, stream):
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="No space left"):
        fit(tmp_path, 2, str(tmp_path / "last.ckpt"))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def truncate(file):
    file.write_bytes(file.read_bytes()[:-100])


def zero_bytes(file):
    content = bytearray(file.read_bytes())
    start = len(content) // 3
    content[start : start + 40] = bytes(40)
    file.write_bytes(content)


@pytest.mark.parametrize("damage", [truncate, zero_bytes, Path.unlink])
def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(tmp_path, damage):
    fit(tmp_path, 3)
    expected = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert resumable_checkpoint(tmp_path) == (tmp_path / "last.ckpt", "")
    damage(tmp_path / "last.ckpt")
    file, problem = resumable_checkpoint(tmp_path)
    assert (file, epoch_of(file)) == (tmp_path / "previous.ckpt", 1)
    assert "\n" not in problem
    assert (f"{tmp_path}/last.ckpt: " in problem) == (damage is not Path.unlink)
    fit(tmp_path, 3, str(file))
    resumed = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert resumed["epoch"] == expected["epoch"]
    assert str(resumed["state_dict"]) == str(expected["state_dict"])


@pytest.mark.parametrize("damage", [truncate, zero_bytes, Path.unlink])
def test_a_fit_is_not_resumed_without_its_best_epoch(tmp_path, damage):
    """No later epoch is better, so that best.ckpt would never be written."""
    fit(tmp_path, 2)
    damage(tmp_path / "best.ckpt")
    file, problem = resumable_checkpoint(tmp_path)
    assert file is None
    assert problem.startswith(f"{tmp_path}/best.ckpt: ")


@pytest.mark.parametrize("case", ["same folder", "relative path", "renamed", "another folder"])
def test_a_resumed_fit_remembers_its_best_epoch(tmp_path, monkeypatch, case):
    first = tmp_path / "first"
    fit(first, 1)
    monkeypatch.chdir(tmp_path)
    second = {"same folder": first, "relative path": "first"}.get(case, tmp_path / "second")
    last = first / "last.ckpt"
    if case == "renamed":
        shutil.move(first, second)
        last = second / "last.ckpt"
    fit(second, 3, str(last))
    folder = tmp_path / second
    assert [epoch_of(folder / name) for name in ("best.ckpt", "last.ckpt")] == [0, 2]


def test_the_best_checkpoint_of_another_fit_is_not_used(tmp_path):
    fit(tmp_path / "one", 1)
    fit(tmp_path / "other", 2)
    content = torch.load(tmp_path / "other/best.ckpt", weights_only=True)
    with pytest.warns(UserWarning, match="The dirpath has changed"):
        fit(tmp_path / "other", 3, str(tmp_path / "one/last.ckpt"))
    assert epoch_of(tmp_path / "other/best.ckpt") == 1 != content["epoch"]


DIRECTIONS = {"val/loss": "min", "val/ece": "min", "val/accuracy": "max", "val/auroc": "max"}


@pytest.mark.parametrize(("monitor", "direction"), DIRECTIONS.items())
def test_the_metric_decides_which_epoch_is_best(tmp_path, monitor, direction):
    fit(tmp_path, 3, callbacks=[BestAndLastCheckpoint(monitor)])
    assert epoch_of(tmp_path / "best.ckpt") == {"min": 0, "max": 2}[direction]


@pytest.mark.parametrize(("monitor", "direction"), DIRECTIONS.items())
def test_the_metric_decides_what_early_stopping_counts_as_improvement(tmp_path, monitor, direction):
    stopping = ResumableEarlyStopping(monitor, patience=1)
    fit(tmp_path, 3, callbacks=[BestAndLastCheckpoint(), stopping])
    assert epoch_of(tmp_path / "last.ckpt") == {"min": 1, "max": 2}[direction]


@pytest.mark.parametrize("callback", [BestAndLastCheckpoint, ResumableEarlyStopping])
def test_a_direction_is_required_for_an_unknown_metric_only(tmp_path, callback):
    with pytest.raises(ValueError, match=r"monitor: unknown metric 'val/dice'.*set mode"):
        callback("val/dice")
    with pytest.raises(ValueError, match=r"mode: 'min' is wrong for 'val/accuracy'.*larger"):
        callback("val/accuracy", mode="min")
    fit(tmp_path, 3, callbacks=[BestAndLastCheckpoint("val/dice", mode="max")])
    assert epoch_of(tmp_path / "best.ckpt") == 2
