"""What a fit prints to the terminal: a summary of what trains, then progress."""

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from rich.table import Table

from lightning_modules.classifier import ImageClassifier

SHOWN_METRICS = ("train/loss", "val/loss", "val/accuracy")


class ProgressBar(RichProgressBar):
    """A progress bar with losses and accuracy; outside of a terminal, one line per epoch."""

    def __init__(self) -> None:
        super().__init__(leave=False)
        if not Console().is_terminal:
            self.disable()

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Losses and accuracy of the last epoch."""
        metrics = super().get_metrics(trainer, pl_module)
        return {name: value for name, value in metrics.items() if name in SHOWN_METRICS}

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the line of the epoch if there is no bar."""
        super().on_train_epoch_end(trainer, pl_module)
        if self.is_disabled and trainer.is_global_zero:
            metrics = trainer.callback_metrics
            values = [f"{name} {metrics[name]:.4f}" for name in SHOWN_METRICS if name in metrics]
            print(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", *values, flush=True)


class TrainableSummary(L.Callback):
    """Prints which parts of the network train, from which epoch and at which learning rate."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints one row for each part of the network."""
        if not trainer.is_global_zero or not isinstance(pl_module, ImageClassifier):
            return
        table = Table("part", box=None, pad_edge=False)
        for title in ("parameters", "trains from epoch", "largest lr"):
            table.add_column(title, justify="right")
        rows = pl_module.fine_tuning.summary(pl_module.net, pl_module.optimizer.lr)
        for part, size, epoch, lr in rows:
            table.add_row(part, f"{size:,}", "never" if epoch is None else str(epoch), f"{lr:g}")
        Console().print(table)
