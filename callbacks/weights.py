"""Weights of a fit: which of them train, their moving average, a start from a checkpoint."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from rich.console import Console
from rich.table import Table
from torch.optim.swa_utils import AveragedModel

from datamodules.datamodule import ImageDataModule
from lightning_modules import checkpoints
from lightning_modules.classifier import ImageClassifier


class EMA(EMAWeightAveraging):
    """Validates and saves an exponential moving average of the weights.

    Unlike Lightning's callback it drops the average after a fit: a later test in the same process
    uses the weights of its checkpoint.

    Args:
        decay: fraction of the old average that remains after each optimizer step.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(decay=decay)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Creates the average for a fit and drops it for any other stage."""
        self._average_model = None
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(self, *args: Any) -> None:
        """Restores the average of a resumed fit."""
        if self._average_model is not None:
            super().on_load_checkpoint(*args)


class WarmStart(L.Callback):
    """Loads the weights of a checkpoint before a fit, and first removes the channels it lacks.

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
        content = read_matching_checkpoint(path, trainer)
        structure = content.get(checkpoints.KEY, {}).get("structure")
        for module in (pl_module, *(a.module for a in averages(trainer))) if structure else ():
            if not isinstance(module, ImageClassifier):
                kind = type(module).__name__
                raise ValueError(f"{path}: its channels are pruned, which {kind} does not support")
            module.apply_structure(structure)
        load_weights(path, content, trainer, pl_module)


class TrainableSummary(L.Callback):
    """Prints which parts of the network train, from which epoch and at which learning rate."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints one row for each part of the network."""
        if not trainer.is_global_zero or not isinstance(pl_module, ImageClassifier):
            return
        table = Table("part", box=None, pad_edge=False)
        for title in ("parameters", "trains from epoch", "largest lr"):
            table.add_column(title, justify="right")
        summary = pl_module.fine_tuning.summary(pl_module.net, pl_module.optimizer.lr)
        for part, size, epoch, lr in summary:
            table.add_row(part, f"{size:,}", "never" if epoch is None else str(epoch), f"{lr:g}")
        Console().print(table)


def averages(trainer: L.Trainer) -> list[AveragedModel]:
    """The averaged copies of the module that EMA or other WeightAveraging callbacks maintain."""
    callbacks = [c for c in vars(trainer)["callbacks"] if isinstance(c, WeightAveraging)]
    return [c._average_model for c in callbacks if c._average_model is not None]


def read_matching_checkpoint(path: Path, trainer: L.Trainer) -> dict[str, Any]:
    """The content of a checkpoint; ValueError unless the trainer has its manifest and classes."""
    content = checkpoints.read_content(path)
    if checkpoints.KEY in content:
        checkpoints.verified_block(content, str(path))
    datamodule, block = vars(trainer).get("datamodule"), content.get(checkpoints.KEY, {})
    if isinstance(datamodule, ImageDataModule):
        if block.get("manifest_digest") != datamodule.manifest.digest():
            reason = "its training samples may be in val or test of this one"
            raise ValueError(f"{path}: was trained on another manifest; {reason}")
        names, expected = block.get("class_names"), list(datamodule.class_names)
        if names != expected:
            raise ValueError(f"{path}: has classes {names}, not {expected}")
    return content


def load_weights(
    path: Path, content: dict[str, Any], trainer: L.Trainer, module: L.LightningModule
) -> None:
    """Loads the content of the checkpoint `path` into the module and the averages of it."""
    train_ids = content.get(checkpoints.KEY, {}).get("train_ids")
    if isinstance(module, ImageClassifier) and train_ids is not None:
        module.initial_train_ids = train_ids
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    for average in averages(trainer):
        average.module.load_state_dict(content["state_dict"])
        average.n_averaged.zero_()
