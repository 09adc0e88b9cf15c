"""A fit that begins with the weights, and the channels, of a checkpoint."""

from pathlib import Path
from typing import Any, cast

import lightning as L

from callbacks import weights


class WarmStart(L.Callback):
    """Before a fit: the checkpoint's structure and weights into the module.

    The checkpoint must be of the same data (its manifest's digest) and classes. It belongs in
    front of callbacks that copy the module. A resumed fit goes on from its own checkpoint.

    Args:
        start: the checkpoint file.
    """

    def __init__(self, start: str) -> None:
        self.start = start

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Loads, before there is an optimizer."""
        if stage != "fit":
            return
        path = Path(self.start)
        content = weights.content_of(path)
        structure = content.get("consilium", {}).get("structure")
        if structure:
            cast(Any, pl_module).restructure(structure)
        weights.put(path, content, trainer, pl_module)
