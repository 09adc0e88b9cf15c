"""Whether a checkpoint is of the network that a config describes."""

from typing import Any

from lightning_modules.checkpoints import Block, CheckpointError

ARGUMENTS = ("backbone", "backbone_args", "head", "trunks")  # what an answer depends on
# what a backbone takes that changes no answer; dropout does not either
HOW = ("grad_checkpointing", "channels_last", "compile", "commercial_only")


def require(block: Block, module: str, init_args: dict[str, Any]) -> None:
    """An error for another network: its weights would not fit, or fit and say something else."""
    if block.module != module:
        raise CheckpointError(f"checkpoint is of {block.module}, the config says {module}")
    for name in ARGUMENTS:
        if name in block.init_args and name in init_args:
            said, mine = _deciding(block.init_args[name]), _deciding(init_args[name])
            if said != mine:
                raise CheckpointError(f"checkpoint has {name} {said}, the config says {mine}")


def _deciding(said: object) -> object:
    """An argument without the parts that change no answer."""
    if not isinstance(said, dict):
        return said or {}
    return {k: v for k, v in said.items() if k not in HOW and "drop" not in k}
