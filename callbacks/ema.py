"""Exponential moving average of the weights, and access to the averages of a trainer."""

from typing import Any, TypeVar

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging, WeightAveraging
from torch import nn
from torch.optim.swa_utils import AveragedModel

AnyCallback = TypeVar("AnyCallback", bound=L.Callback)


class EMA(EMAWeightAveraging):
    """Validates and saves an exponential moving average of the weights.

    Unlike Lightning's callback it drops the average after a fit, so that a later validation or
    test in the same process uses the weights of its checkpoint.

    Args:
        decay: fraction of the old average that remains after each optimizer step.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(decay=decay)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Creates the average for a fit and drops it for any other stage."""
        self._average_model = None
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Restores the average of a resumed fit."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def find_callbacks(trainer: L.Trainer, kind: type[AnyCallback]) -> list[AnyCallback]:
    """The trainer's callbacks of a class."""
    callbacks: list[L.Callback] = vars(trainer)["callbacks"]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def averaged_modules(trainer: L.Trainer) -> list[nn.Module]:
    """The averaged copies of the module, of EMA and of Lightning's own averaging callbacks."""
    return [average.module for average in _averages(trainer)]


def restart_averages(trainer: L.Trainer) -> None:
    """Makes every average start from its current weights, as if it had not been updated yet."""
    for average in _averages(trainer):
        average.n_averaged.zero_()


def _averages(trainer: L.Trainer) -> list[AveragedModel]:
    averages = [c._average_model for c in find_callbacks(trainer, WeightAveraging)]
    return [average for average in averages if average is not None]
