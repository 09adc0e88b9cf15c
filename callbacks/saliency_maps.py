"""The same few validation pictures with their heat maps, every few epochs."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from callbacks.wandb_logger import show
from callbacks.weights import averages
from evaluation.files import write_bytes
from evaluation.plots import maps
from evaluation.plots.maps import Shown
from evaluation.reports.answers import code
from evaluation.reports.html import to_png

FOLDER = "heatmaps"


class SaliencyMaps(L.Callback):
    """heatmaps/epoch-NNN.png: what the model answers for a fixed handful, and where it looks.

    The pictures are taken from val class by class, as the network sees them; maps are of the true
    class, and of the weights that the epoch's figures are of: of averages if there are any. A
    logger with `log_image` (W&B) is given the same picture, with a code in place of each id.

    Args:
        every: epochs between two pictures, from the first on; the last of max_epochs is drawn too.
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
            raise ValueError(
                f"callbacks.SaliencyMaps: {type(pl_module).__name__} cannot be explained"
            )
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
        self.explainer(pl_module)  # refuses a method or a network before anything is trained

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draws the handful."""
        epoch = trainer.current_epoch
        last = epoch + 1 == trainer.max_epochs
        if trainer.state.fn != "fit" or trainer.sanity_checking or not trainer.is_global_zero:
            return
        if epoch % self.every and not last:
            return
        # averages were measured and are saved, but have left the module by now
        shown = self.look(next(iter(averages(trainer)), pl_module))
        file = Path(trainer.default_root_dir) / FOLDER / f"epoch-{epoch + 1:03d}.png"
        write_bytes(file, self.draw(shown, self.ids))
        if trainer.loggers:
            sent = self.draw(shown, [code(name) for name in self.ids])
            show(trainer.loggers, "val/heatmaps", sent)

    def explainer(self, module: nn.Module) -> Callable[[Tensor, list[int]], Any]:
        """What gives the maps of `module` for images of the handful's size."""
        made: Callable[..., Any] = cast(Any, module).explainer(self.seen.shape[-1], self.method)
        return made

    def look(self, module: nn.Module) -> list[Shown]:
        """The handful's classes, the answers of `module` and its maps."""
        names, device = cast(Any, module).class_names, next(module.parameters()).device
        found = self.explainer(module)(self.seen.to(device), self.labels)
        odds = torch.from_numpy(found.logits).softmax(dim=1).numpy()
        return [
            Shown(f"{names[label]}", f"says {names[p.argmax()]} {p.max():.2f}", one)
            for label, p, one in zip(self.labels, odds, found.maps, strict=True)
        ]

    def draw(self, shown: Sequence[Shown], ids: Sequence[str]) -> bytes:
        """The handful with its maps as PNG, `ids` in the captions."""
        tiles = [visible(image.numpy()) for image in self.seen]
        named = [
            replace(one, caption=f"{one.caption}\n{name}")
            for one, name in zip(shown, ids, strict=True)
        ]
        return to_png(maps.gallery(tiles, named))


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
