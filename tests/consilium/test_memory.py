"""Out of memory: the flags that help are named, and --auto_batch takes them."""

from pathlib import Path

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from consilium.cli.main import main
from consilium.cli.memory import OutOfMemory, fitting, watched
from tests.conftest import Tiny


class Small(Callback):
    """A device that holds four pictures; the second epoch is where it is first full."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, _: object, batch: dict[str, torch.Tensor], __: int
    ) -> None:
        if trainer.current_epoch == 1 and len(batch["label"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def configs(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("tests.conftest.SMALL", Small, raising=False)
    return tiny.configs("small", **{"trainer.callbacks+": [{"class_path": "tests.conftest.SMALL"}]})


def test_the_flags_that_help_are_named(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *configs(tiny, monkeypatch), "--run", str(tmp_path)]) != 0
    said = capsys.readouterr().err
    assert "out of memory with a batch_size of 8" in said
    assert "--data.init_args.batch_size 4 --trainer.accumulate_grad_batches 2" in said


def test_auto_batch_goes_on_with_half(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["fit", *configs(tiny, monkeypatch), "--run", str(tmp_path), "--auto_batch"]
    assert main(args) == 0
    said = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert said["data"]["init_args"]["batch_size"] == 4
    assert said["trainer"]["accumulate_grad_batches"] == 2
    assert (tmp_path / "results.json").exists()
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3


def test_a_single_picture_that_does_not_fit_is_the_end() -> None:
    tried = []

    def never_fits(args: list[str]) -> None:
        size = int(args[args.index("--data.init_args.batch_size") + 1]) if len(args) > 1 else 4
        tried.append(size)
        raise OutOfMemory(size, 8 // size, "nowhere")

    with pytest.raises(OutOfMemory, match="batch_size of 1"):
        fitting(never_fits, ["fit", "--auto_batch"])
    assert tried == [4, 2, 1]


def test_other_errors_stay_what_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), watched(lambda: (8, 1, "")):
        raise RuntimeError("shapes differ")
