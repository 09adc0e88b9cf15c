"""From a source to batches: manifest, preprocessing, augmentation and loaders of each split."""

import os
from typing import Any, Literal

import cv2
import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, Dataset

from datamodules.augment import Augment
from datamodules.images import read
from datamodules.manifest import Manifest
from datamodules.preprocess import Preprocess
from datamodules.samplers import ExactSampler, ShuffledSampler
from datamodules.sources import Source

Sample = dict[str, Any]
DEFAULT = Preprocess()


class Pictures(Dataset[Sample]):
    """The samples of one split; an item is asked for as ``(epoch, position)``.

    Args:
        manifest: All samples.
        rows: The split's positions in the manifest.
        views: What networks see, by name; the name "" gives a bare tensor.
        augment: Applied between the cacheable pixels and the tensor; None in evaluation.
        seed: With the epoch and the index decides what augmentation does.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: np.ndarray,
        views: dict[str, Preprocess],
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.paths = manifest.table["path"].to_numpy(dtype=object)[rows]
        self.labels = manifest.table["label"].to_numpy()[rows]
        self.rows, self.views, self.augment, self.seed = rows, views, augment, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        epoch, position = key
        index = int(self.rows[position])
        image = read(self.paths[position])
        seen = {
            name: self._seen(view, image, (self.seed, epoch, index))
            for name, view in self.views.items()
        }
        bare = seen.get("", seen)
        return {"image": bare, "label": int(self.labels[position]), "index": index}

    def _seen(
        self, view: Preprocess, image: np.ndarray, rng_seed: tuple[int, int, int]
    ) -> torch.Tensor:
        pixels = view.pixels(image)
        return view.tensor(self.augment(pixels, rng_seed) if self.augment else pixels)


class ImageDataModule(LightningDataModule):
    """Batches ``{"image": float32 (B,3,H,W), "label": int64 (B,), "index": int64 (B,)}``.

    ``index`` is the row in ``manifest.table``. After ``view_names`` was called, evaluation batches
    carry a dict of images, one entry a view, from one decoded picture.

    Args:
        source: Where the samples come from.
        class_names: The name of each label, in order; the source's files must agree.
        preprocess: The deterministic steps of every picture.
        augment: The policy for training pictures.
        strengths: The policy's settings that differ from its own.
        batch_size: Pictures a batch and process.
        workers: Processes that load; null chooses by the machine's cores.
        seed: Decides the order and the augmentation.
        predict_split: The split that ``predict`` goes through.
    """

    manifest: Manifest
    class_weights: list[float] | None

    def __init__(
        self,
        source: Source,
        class_names: list[str],
        preprocess: Preprocess = DEFAULT,
        augment: str = "none",
        strengths: dict[str, float] | None = None,
        batch_size: int = 32,
        workers: int | None = None,
        seed: int = 0,
        predict_split: Literal["train", "val", "test", "predict"] = "test",
    ) -> None:
        super().__init__()
        self.source, self.class_names, self.preprocess = source, class_names, preprocess
        self.augment = Augment(augment, strengths)
        self.batch_size, self.seed, self.predict_split = batch_size, seed, predict_split
        self.workers = workers if workers is not None else _fitting_workers()
        self.class_weights = None
        self._views = {"": preprocess}

    def prepare_data(self) -> None:
        """Makes what the source has to make, on one process."""
        self.source.prepare()

    def setup(self, stage: str) -> None:
        """Reads the manifest, once."""
        if not hasattr(self, "manifest"):
            self.manifest = self.source.manifest(self.class_names)
        for split in self._splits(stage):
            if not len(self.rows(split)):
                raise ValueError(f"the split {split!r} that {stage!r} needs has no pictures")

    def view_names(self, views: list[dict[str, Any]]) -> list[str]:
        """The view of each Preprocess given as a dict; from now on batches carry all of them."""
        settings = [Preprocess.from_dict(values) for values in views]
        self._views = {view.name: view for view in settings}
        return [view.name for view in settings]

    def rows(self, split: str) -> np.ndarray:
        """Positions of a split's samples in the manifest."""
        return self.manifest.rows(split)

    def train_dataloader(self) -> DataLoader[Sample]:
        """Shuffled and augmented, as a function of seed, epoch and index alone."""
        rows = self.rows("train")
        pictures = Pictures(self.manifest, rows, {"": self.preprocess}, self.augment, self.seed)
        return self._loader(pictures, ShuffledSampler(len(rows), self.seed, *self._place()))

    def val_dataloader(self) -> DataLoader[Sample]:
        """Every sample of val once."""
        return self._exact("val")

    def test_dataloader(self) -> DataLoader[Sample]:
        """Every sample of test once."""
        return self._exact("test")

    def predict_dataloader(self) -> DataLoader[Sample]:
        """Every sample of ``predict_split`` once."""
        return self._exact(self.predict_split)

    def _splits(self, stage: str) -> list[str]:
        by_stage = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}
        return by_stage.get(stage, [self.predict_split])

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _exact(self, split: str) -> DataLoader[Sample]:
        rows = self.rows(split)
        pictures = Pictures(self.manifest, rows, self._views)
        return self._loader(pictures, ExactSampler(len(rows), *self._place()))

    def _loader(
        self, pictures: Pictures, sampler: ShuffledSampler | ExactSampler
    ) -> DataLoader[Sample]:
        return DataLoader(
            pictures,
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            worker_init_fn=_alone,
        )


def _fitting_workers() -> int:
    return min(8, len(os.sched_getaffinity(0)))


def _alone(worker: int) -> None:
    """A worker is one of several: its libraries' own threads would only be in each other's way."""
    cv2.setNumThreads(0)
