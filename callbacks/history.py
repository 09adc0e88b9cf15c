"""history.csv: one row an epoch, whole after every epoch, continued after a resume."""

import time
from pathlib import Path

import lightning as L
import pandas as pd

from evaluation.files import write_text

FILE = "history.csv"


class HistoryWriter(L.Callback):
    """Writes epoch, step, learning rate, seconds and every logged figure to history.csv."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.started, self.validated = 0.0, False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the rows of the epochs before a resume and drops what was interrupted."""
        path = Path(trainer.default_root_dir) / FILE
        self.rows = []
        if path.is_file() and trainer.current_epoch > 0:
            before = pd.read_csv(path)
            kept = before[before["epoch"] < trainer.current_epoch]
            self.rows = [{str(k): v for k, v in row.items()} for row in kept.to_dict("records")]

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the epoch's clock."""
        self.started, self.validated = time.monotonic(), False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Knows that the figures of val are of this epoch; Lightning keeps those of the last."""
        self.validated = not trainer.sanity_checking

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the epoch's row."""
        if not trainer.is_global_zero:
            return
        rates = [
            group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups
        ]
        figures = {
            name: float(value) for name, value in trainer.callback_metrics.items()
            if self.validated or not name.startswith("val/")
        }  # fmt: skip
        row = {"epoch": trainer.current_epoch, "step": trainer.global_step, "lr": max(rates)}
        own = {"lr": row["lr"], "seconds": round(time.monotonic() - self.started, 3)}
        self.rows.append({**row, **own, **figures})
        for logger in trainer.loggers:  # which get the figures from Lightning
            logger.log_metrics({"epoch": trainer.current_epoch, **own}, step=trainer.global_step)
        write_text(
            Path(trainer.default_root_dir) / FILE, pd.DataFrame(self.rows).to_csv(index=False)
        )
