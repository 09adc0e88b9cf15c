"""Saliency maps of the same few validation images during a fit."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch

from callbacks.wandb_logger import log_image
from callbacks.weights import averages
from datamodules.dataset import ImageDataset, normalize_batch
from evaluation.files import write_bytes
from evaluation.plots import maps
from evaluation.plots.maps import Panel
from evaluation.reports.html import render_png
from evaluation.reports.run import hashed_id
from lightning_modules.classifier import ImageClassifier
from lightning_modules.freezing import require


class SaliencyMaps(L.Callback):
    """Writes saliency_maps/epoch-NNN.png: images, predictions and maps of the true class.

    The images are the same in all epochs, taken from each class of val in turn. Predictions and
    maps are of the validated weights, which may be averages. W&B and TensorBoard get the plot with
    hashes in place of ids.

    Args:
        every_n_epochs: number of epochs from one plot to the next; the last of max_epochs is
            always plotted.
        num_images: number of images.
        method: a method of `consilium explain`.
    """

    def __init__(
        self, every_n_epochs: int = 1, num_images: int = 6, method: str = "GradCAM"
    ) -> None:
        self.every_n_epochs, self.num_images, self.method = every_n_epochs, num_images, method
        require("every_n_epochs", every_n_epochs, every_n_epochs >= 1, "at least 1")
        require("num_images", num_images, num_images >= 1, "at least 1")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Loads the images; ValueError if the module has no saliency maps by the method."""
        if not isinstance(pl_module, ImageClassifier) or pl_module.datamodule is None:
            needed = "an ImageClassifier and an ImageDataModule"
            raise ValueError(
                f"callbacks.SaliencyMaps needs {needed}, not {type(pl_module).__name__}"
            )
        if not trainer.is_global_zero:
            return
        datamodule = pl_module.datamodule
        rows, table = datamodule.rows("val"), datamodule.manifest.table
        positions = balanced_positions(table["label"].to_numpy()[rows], self.num_images)
        views = {"": datamodule.preprocess}
        dataset = ImageDataset(datamodule.manifest, rows, views, {})
        batch = normalize_batch(dataset.__getitems__([(0, i) for i in positions]), views)
        self.images, self.labels = batch["image"], batch["label"].tolist()
        self.ids = [str(table["id"].iloc[rows[position]]) for position in positions]
        # an error for an unknown method or an unsupported network before anything is trained
        pl_module.explainer(self.images.shape[-1], self.method)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes and logs the plot of an epoch, if it is due."""
        epoch = trainer.current_epoch
        is_due = epoch % self.every_n_epochs == 0 or epoch + 1 == trainer.max_epochs
        is_epoch_of_fit = trainer.state.fn == "fit" and not trainer.sanity_checking
        if not (is_due and is_epoch_of_fit and trainer.is_global_zero):
            return
        # averaged weights were validated and are saved, but are no longer in the module here
        module = next((average.module for average in averages(trainer)), pl_module)
        if not isinstance(module, ImageClassifier):
            return
        panels = self.explain(module)
        file = Path(trainer.default_root_dir) / "saliency_maps" / f"epoch-{epoch + 1:03d}.png"
        write_bytes(file, self.plot(panels, self.ids))
        if trainer.loggers:
            png = self.plot(panels, [hashed_id(name) for name in self.ids])
            log_image(trainer.loggers, "val/saliency_maps", png)

    def explain(self, module: ImageClassifier) -> list[Panel]:
        """A panel of each image: true class, prediction and saliency map of the true class."""
        explainer = module.explainer(self.images.shape[-1], self.method)
        explained = explainer(self.images.to(next(module.parameters()).device), self.labels)
        probabilities = torch.from_numpy(explained.logits).softmax(dim=1).numpy()
        names, panels = module.class_names, []
        for label, p, saliency in zip(self.labels, probabilities, explained.maps, strict=True):
            prediction = f"predicted {names[p.argmax()]} {p.max():.2f}"
            panels.append(Panel(names[label], prediction, saliency))
        return panels

    def plot(self, panels: Sequence[Panel], ids: Sequence[str]) -> bytes:
        """PNG of the images with their maps, with `ids` in the captions."""
        images = [to_rgb(image.numpy()) for image in self.images]
        pairs = zip(panels, ids, strict=True)
        captioned = [replace(panel, caption=f"{panel.caption}\n{name}") for panel, name in pairs]
        return render_png(maps.panel_grid(images, captioned))


def balanced_positions(labels: np.ndarray, count: int) -> list[int]:
    """Positions of `count` samples: the first of each class, the second of each class, ..."""
    rank_in_class = pd.Series(labels).groupby(labels).cumcount()
    return [int(i) for i in np.lexsort((labels, rank_in_class))[:count]]


def to_rgb(image: np.ndarray) -> np.ndarray:
    """A preprocessed image (3, H, W) as RGB uint8 (H, W, 3), scaled to 0..255."""
    scaled = (image - image.min()) / (np.ptp(image) or 1)
    return np.asarray(np.rint(scaled.transpose(1, 2, 0) * 255), dtype=np.uint8)
