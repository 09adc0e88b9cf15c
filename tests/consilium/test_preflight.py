"""Out of memory: the message names arguments that help, and --auto_batch applies them."""

from pathlib import Path

import lightning
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback

from consilium.cli.main import main
from consilium.training.preflight import OutOfMemory, raise_out_of_memory, run_with_smaller_batches
from tests.conftest import Tiny


class SmallMemory(Callback):
    """Raises out of memory for more than four images per batch, from the second epoch on."""

    def on_train_batch_start(
        self, trainer: lightning.Trainer, _: object, batch: dict[str, torch.Tensor], __: int
    ) -> None:
        if trainer.current_epoch == 1 and len(batch["label"]) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def configs(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("tests.conftest.SmallMemory", SmallMemory, raising=False)
    callback = {"class_path": "tests.conftest.SmallMemory"}
    return tiny.configs("small", **{"trainer.callbacks+": [callback]})


def test_out_of_memory_names_arguments_that_halve_the_batch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", *configs(tiny, monkeypatch), "--run", str(tmp_path)]) != 0
    error = capsys.readouterr().err
    assert "out of memory with batch_size 8" in error
    assert "--data.init_args.batch_size 4 --trainer.accumulate_grad_batches 2" in error
    assert "trains alike except for batch norms" in error


def test_auto_batch_resumes_with_half_the_batch(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["fit", *configs(tiny, monkeypatch), "--run", str(tmp_path), "--auto_batch"]
    assert main(args) == 0
    config = yaml.safe_load((tmp_path / "config.yaml").read_text())
    assert config["data"]["init_args"]["batch_size"] == 4
    assert config["trainer"]["accumulate_grad_batches"] == 2
    assert (tmp_path / "results.val.json").exists()
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3


def test_auto_batch_ends_at_one_image_per_batch() -> None:
    batch_sizes = []

    def never_fits(args: list[str]) -> None:
        size = int(args[args.index("--data.init_args.batch_size") + 1]) if len(args) > 1 else 4
        batch_sizes.append(size)
        raise OutOfMemory(size, 8 // size, "nowhere")

    with pytest.raises(OutOfMemory, match="batch_size 1"):
        run_with_smaller_batches(never_fits, ["fit", "--auto_batch"])
    assert batch_sizes == [4, 2, 1]


def test_other_runtime_errors_are_unchanged() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), raise_out_of_memory(8, 1, ""):
        raise RuntimeError("shapes differ")
