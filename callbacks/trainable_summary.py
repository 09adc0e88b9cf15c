"""At the start of a fit: what trains, from which epoch, at which rate."""

from typing import Any

import lightning as L
from rich.console import Console
from rich.table import Table


class TrainableSummary(L.Callback):
    """Prints one row for each part of the network that is frozen, thaws or trains."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Asks the module's own settings, on the first process."""
        module: Any = pl_module
        if not trainer.is_global_zero or not hasattr(module, "tuning"):
            return
        table = Table("part", box=None, pad_edge=False)
        for title in ("weights", "trains from epoch", "largest lr"):
            table.add_column(title, justify="right")
        for part, size, start, rate in module.tuning.table(module.net, module.optimization.lr):
            table.add_row(part, f"{size:,}", "never" if start is None else str(start), f"{rate:g}")
        Console().print(table)
