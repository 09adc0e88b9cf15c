"""An exponential average of the weights, measured and saved instead of the last ones."""

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EMAWeightAveraging


class EMA(EMAWeightAveraging):
    """Lightning's own average during a fit, and nothing afterwards.

    Lightning's keeps its average of the fit, and a validation or test that follows in the same
    process would be of other weights than those of the checkpoint it was given.

    Args:
        decay: share of the old average that each optimizer step keeps.
    """

    def __init__(self, decay: float = 0.999) -> None:
        super().__init__(decay=decay)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Starts an average for a fit, forgets it for anything else."""
        self._average_model = None
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Goes on with the average of a resumed fit."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
