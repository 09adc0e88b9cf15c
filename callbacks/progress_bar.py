"""The progress bar: in a terminal only, with the few figures one watches."""

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

WATCHED = ("train/loss", "val/loss", "val/accuracy")


class ProgressBar(RichProgressBar):
    """Rich's bar where somebody can see it; a log file gets one line an epoch instead."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        if not Console().is_terminal:
            self.disable()

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Losses and accuracy of the last epoch."""
        return {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k in WATCHED}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the epoch's line where there is no bar."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.is_disabled and trainer.is_global_zero:
            figures = [f"{k} {trainer.callback_metrics[k]:.4f}" for k in WATCHED
                       if k in trainer.callback_metrics]  # fmt: skip
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", *figures, flush=True)
