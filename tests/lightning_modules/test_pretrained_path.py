"""A weight file, its padding and its normalization, from the command line to the checkpoint."""

from pathlib import Path

import safetensors.torch
import timm
import torch

from consilium.cli.main import main
from lightning_modules import checkpoints
from tests.conftest import Tiny

HALF = [0.5, 0.5, 0.5]


def test_file_padding_and_normalization_arrive(tiny: Tiny, tmp_path: Path) -> None:
    source = timm.create_model("test_efficientnet", pad_type="same").state_dict()
    source = {name: value + 0.01 for name, value in source.items() if value.is_floating_point()}
    weights = tmp_path / "made_up.safetensors"
    safetensors.torch.save_file(source, weights)
    changes = {
        "data.init_args.preprocess": {"size": 32, "mean": HALF, "std": HALF},
        "model.init_args.backbone": "test_efficientnet",
        "model.init_args.pretrained": str(weights),
        "model.init_args.backbone_args": {"pad_type": "same"},
        "model.init_args.tuning": {"frozen_stages": 4},
        "trainer.max_epochs": 1,
    }
    assert main(["fit", *tiny.configs("path", **changes), "--run", str(tmp_path / "run")]) == 0
    weights.unlink()
    module, block = checkpoints.load(tmp_path / "run/best.ckpt")
    assert (list(block.preprocess["mean"]), list(block.preprocess["std"])) == (HALF, HALF)
    assert type(module.net.get_submodule("conv_stem")).__name__ == "Conv2dSame"
    assert torch.equal(module.net.state_dict()["conv_stem.weight"], source["conv_stem.weight"])
