"""The same few validation pictures with their heat maps, every few epochs."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch

from callbacks.board import show
from evaluation import heat
from evaluation.files import write_bytes
from evaluation.heat import Shown
from evaluation.report import to_png

FOLDER = "heatmaps"


class Heatmaps(L.Callback):
    """heatmaps/epoch-NNN.png: what the model answers for a fixed handful, and where it looks.

    The pictures are taken from val class by class, as the network sees them; maps are of the true
    class. A logger with `log_image` (W&B) is given the same picture.

    Args:
        every: epochs between two pictures; the first and the last epoch are always drawn.
        images: how many.
        method: a method of `consilium explain`.
    """

    def __init__(self, every: int = 1, images: int = 6, method: str = "GradCAM") -> None:
        for name, value in (("every", every), ("images", images)):
            if value < 1:
                raise ValueError(f"{name}: {value} is not at least 1")
        self.every, self.images, self.method = every, images, method

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the handful, once."""
        if not hasattr(pl_module, "explainer"):
            raise ValueError(f"callbacks.Heatmaps: {type(pl_module).__name__} cannot be explained")
        if not trainer.is_global_zero:
            return
        data = cast(Any, trainer).datamodule
        pictures = data.val_dataloader().dataset
        chosen = handful(np.asarray(pictures.labels), self.images)
        samples = [pictures[0, position] for position in chosen]
        self.seen = torch.stack([sample["image"] for sample in samples])
        self.labels = [int(sample["label"]) for sample in samples]
        ids = data.manifest.table["id"]
        self.ids = [str(ids.iloc[sample["index"]]) for sample in samples]
        size = int(self.seen.shape[-1])
        self.explain = cast(Any, pl_module).explainer(size, self.method)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the handful."""
        epoch = trainer.current_epoch
        last = epoch + 1 == trainer.max_epochs
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if epoch % self.every and not last:
            return
        png = self.draw(cast(Any, pl_module).class_names, pl_module.device)
        write_bytes(Path(trainer.default_root_dir) / FOLDER / f"epoch-{epoch + 1:03d}.png", png)
        show(trainer.loggers, "val/heatmaps", png)

    def draw(self, names: Sequence[str], device: torch.device) -> bytes:
        """The handful with its maps as PNG."""
        found = self.explain(self.seen.to(device), self.labels)
        odds = torch.from_numpy(found.logits).softmax(dim=1).numpy()
        tiles = [visible(image.numpy()) for image in self.seen]
        shown = [
            Shown(f"{names[label]}", f"says {names[p.argmax()]} {p.max():.2f}\n{name}", one)
            for label, p, name, one in zip(self.labels, odds, self.ids, found.maps, strict=True)
        ]
        return to_png(heat.gallery(tiles, shown))


def handful(labels: np.ndarray, count: int) -> list[int]:
    """Positions of `count` samples, the classes taking turns, each in the order of the split."""
    turns = {k: np.flatnonzero(labels == k).tolist() for k in sorted(set(labels.tolist()))}
    depth = max(map(len, turns.values()), default=0)
    in_turn = [rows[at] for at in range(depth) for rows in turns.values() if at < len(rows)]
    return in_turn[:count]


def visible(image: np.ndarray) -> np.ndarray:
    """A network's input (3, H, W) as RGB uint8, stretched to the full range."""
    low, high = float(image.min()), float(image.max())
    stretched = (image - low) / (high - low if high > low else 1.0)
    return np.asarray(np.rint(stretched.transpose(1, 2, 0) * 255), dtype=np.uint8)
