"""A fit that starts from the weights of a checkpoint."""

from pathlib import Path
from typing import Any

import lightning as L

from callbacks.ema import averaged_modules
from datamodules.datamodule import ImageDataModule
from lightning_modules import checkpoints
from lightning_modules.classifier import ImageClassifier


class WarmStart(L.Callback):
    """Loads the weights, and the pruned channels, of a checkpoint before a fit.

    The checkpoint must have been trained on the same manifest and classes. A resumed fit loads its
    own checkpoint afterwards.

    Args:
        checkpoint: path of the checkpoint.
    """

    def __init__(self, checkpoint: str) -> None:
        self.checkpoint = checkpoint

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Loads the checkpoint before the optimizer is created."""
        if stage != "fit":
            return
        path = Path(self.checkpoint)
        content = read_weights(path)
        structure = content.get(checkpoints.KEY, {}).get("structure")
        if structure:
            for module in (pl_module, *averaged_modules(trainer)):
                if not isinstance(module, ImageClassifier):
                    raise ValueError(f"{path}: its channels are pruned, which "
                                     f"{type(module).__name__} does not support")  # fmt: skip
                module.apply_structure(structure)
        load_weights(path, content, trainer, pl_module)


def read_weights(path: Path) -> dict[str, Any]:
    """The content of a checkpoint; a file without weights is an error, and no code in it is run."""
    content = checkpoints.read_content(path)
    if not isinstance(content, dict) or "state_dict" not in content:
        raise checkpoints.CheckpointError(f"{path}: contains no weights (no 'state_dict')")
    return content


def load_weights(
    path: Path, content: dict[str, Any], trainer: L.Trainer, module: L.LightningModule
) -> None:
    """Loads a checkpoint of the same data into the module and its averages.

    The module records the training samples of the checkpoint, to refuse them in a later test.
    """
    require_same_data(path, content, trainer, module)
    train_ids = content.get(checkpoints.KEY, {}).get("train_ids")
    if isinstance(module, ImageClassifier) and train_ids is not None:
        module.initial_train_ids = train_ids
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    for average in averaged_modules(trainer):
        average.load_state_dict(content["state_dict"])


def require_same_data(
    path: Path, content: dict[str, Any], trainer: L.Trainer, module: L.LightningModule
) -> None:
    """Refuses weights that may have been trained on samples that are now in val or test."""
    datamodule, block = vars(trainer).get("datamodule"), content.get(checkpoints.KEY, {})
    if not isinstance(datamodule, ImageDataModule):
        return
    if block.get("manifest_digest") != datamodule.manifest.digest():
        raise ValueError(f"{path}: was trained on another manifest; its training samples may be "
                         "in val or test of this one")  # fmt: skip
    if block.get("class_names") != list(datamodule.class_names):
        raise ValueError(
            f"{path}: has classes {block.get('class_names')}, not {list(datamodule.class_names)}"
        )
