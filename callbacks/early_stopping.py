"""Early stopping that holds after a resume."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

NEVER = 1_000_000  # epochs without gain; a member's early_stopping says fewer


class Stopping(EarlyStopping):
    """Lightning's, but a run that had stopped trains no further when it goes on from last.ckpt.

    Lightning restores how long nothing was gained and then trains another epoch, so a run that was
    killed between its last epoch and its test would end with other weights.

    Args:
        monitor: the figure that has to gain.
        patience: so many epochs in a row may be without a gain; as it stands, any number.
        **options: Lightning's own.
    """

    def __init__(self, monitor: str = "val/loss", patience: int = NEVER, **options: Any) -> None:
        super().__init__(monitor, patience=patience, **options)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops before the first step where the checkpoint says that it is over."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True
