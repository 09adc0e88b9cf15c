"""Early stopping that holds after a resume."""

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping


class Stopping(EarlyStopping):
    """Lightning's, but a run that had stopped trains no further when it goes on from last.ckpt.

    Lightning restores how long nothing was gained and then trains another epoch, so a run that was
    killed between its last epoch and its test would end with other weights.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops before the first step where the checkpoint says that it is over."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True
