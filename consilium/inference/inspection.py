"""What is stored in a checkpoint, what its network costs, and whether its weights are unchanged."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_modules import checkpoints, model_info, packing
from lightning_modules.ensemble import find_ensemble_file, read_ensemble_file


@dataclass(frozen=True)
class CheckpointInfo:
    """One checkpoint.

    Args:
        path: of the file.
        block: its metadata (`checkpoints.Block`) without the hashes of sample ids.
        train_samples: number of samples it was trained on.
        val_samples: number of samples its epoch was chosen by.
        weights: hash of the weights in the file.
        is_intact: whether this is the hash recorded in the file, and in the ensemble if any.
        is_measured: whether its metrics were computed with these weights.
        parameters: number of parameters of the network.
        macs: multiply-accumulates per image.
        zero_fraction: fraction of the parameters that are 0.
        bytes: size of the file.
    """

    path: str
    block: dict[str, Any]
    train_samples: int
    val_samples: int
    weights: str
    is_intact: bool
    is_measured: bool
    parameters: int
    macs: int
    zero_fraction: float
    bytes: int


def inspect_checkpoint(path: Path, expected_hash: str | None = None) -> CheckpointInfo:
    """Reads a checkpoint and compares its weights with the recorded (and the expected) hash."""
    block, state = checkpoints.read(path)
    weights = checkpoints.weights_hash(state)
    parameters, macs = model_info.checkpoint_cost(block)
    with torch.device("meta"):
        module = checkpoints.build_module(block)
    module.load_state_dict(state, assign=True)
    return CheckpointInfo(
        path=path.as_posix(),
        block={name: value for name, value in vars(block).items() if name not in packing.IDS},
        train_samples=len(block.train_ids),
        val_samples=len(block.val_ids),
        weights=weights,
        is_intact=weights == block.weights and expected_hash in (None, weights),
        is_measured=weights == block.measured_weights,
        parameters=parameters,
        macs=macs,
        zero_fraction=model_info.zero_fraction(module),
        bytes=path.stat().st_size,
    )


def inspect_model(path: Path) -> list[CheckpointInfo]:
    """The checkpoint, the best checkpoint of a run folder, or all members of an ensemble."""
    if file := find_ensemble_file(path):
        ensemble = read_ensemble_file(file)
        members = zip(ensemble.members.values(), ensemble.weights.values(), strict=True)
        return [inspect_checkpoint(member, expected_hash) for member, expected_hash in members]
    return [inspect_checkpoint(path / "best.ckpt" if path.is_dir() else path)]
