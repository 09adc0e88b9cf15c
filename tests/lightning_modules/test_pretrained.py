"""A weight file, its padding and its normalization, from the command line to the checkpoint."""

from pathlib import Path

import safetensors.torch
import timm
import torch

from consilium.cli.main import main
from lightning_modules import checkpoints
from tests.conftest import Tiny

HALF = [0.5, 0.5, 0.5]


def test_weight_file_padding_and_normalization_reach_the_checkpoint(
    tiny: Tiny, tmp_path: Path
) -> None:
    state = timm.create_model("test_efficientnet", pad_type="same").state_dict()
    state = {name: value + 0.01 for name, value in state.items() if value.is_floating_point()}
    weight_file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, weight_file)
    changes = {
        "data.init_args.preprocess": {"size": 32, "mean": HALF, "std": HALF},
        "model.init_args.backbone": "test_efficientnet",
        "model.init_args.pretrained": str(weight_file),
        "model.init_args.backbone_args": {"pad_type": "same"},
        "model.init_args.fine_tuning": {"frozen_stages": 4},
        "trainer.max_epochs": 1,
    }
    assert main(["fit", *tiny.configs("path", **changes), "--run", str(tmp_path / "run")]) == 0
    weight_file.unlink()
    module, block = checkpoints.load(tmp_path / "run/best.ckpt")
    assert (list(block.preprocess["mean"]), list(block.preprocess["std"])) == (HALF, HALF)
    assert type(module.net.get_submodule("conv_stem")).__name__ == "Conv2dSame"
    assert torch.equal(module.net.state_dict()["conv_stem.weight"], state["conv_stem.weight"])
