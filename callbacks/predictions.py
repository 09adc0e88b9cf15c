"""Writes the prediction tables of a split, each id once."""

from pathlib import Path
from typing import Any, cast

import lightning as L

from evaluation.predictions import PredictionTable

FOLDER = "predictions"


class PredictionWriter(L.Callback):
    """predictions/SPLIT.parquet; for an ensemble predictions/SPLIT/MEMBER.parquet as well."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes val, but not at every epoch of a fit."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module, "val")

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes test."""
        self._write(trainer, pl_module, "test")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes the predicted split, and says where."""
        split = cast(Any, trainer).datamodule.predict_split
        self._write(trainer, pl_module, split)
        if trainer.is_global_zero:
            print(f"predictions: {Path(trainer.default_root_dir) / FOLDER / split}.parquet")

    def _write(self, trainer: L.Trainer, module: L.LightningModule, split: str) -> None:
        if not trainer.is_global_zero:
            return
        said: dict[str, PredictionTable] = getattr(module, "tables", {}).get(split, {})
        folder = Path(trainer.default_root_dir) / FOLDER
        for name, table in said.items():
            table.write(folder / (f"{split}/{name}.parquet" if name else f"{split}.parquet"))
