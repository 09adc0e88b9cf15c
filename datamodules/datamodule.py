"""From a source to batches: manifest, preprocessing, augmentation and loaders of each split."""

import os
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import pandas as pd
import torch
from lightning.pytorch import LightningDataModule

from datamodules import cache
from datamodules.audit.audit import cheap_leaks
from datamodules.augment import Augment
from datamodules.balance import Balance
from datamodules.dataset import ImageDataset, Sample, as_it_is, finished
from datamodules.folds import Fold
from datamodules.images import unreadable
from datamodules.loader import LateLoader
from datamodules.manifest import Manifest
from datamodules.preprocess import Preprocess
from datamodules.samplers import BalancedSampler, ExactSampler, ShuffledSampler, WeightedSampler
from datamodules.sources import Source


@dataclass(frozen=True)
class Reading:
    """How files are read.

    Args:
        cache: Folder that keeps prepared pixels between runs; null decodes every time.
        corrupt: ``raise`` ends the run at a file that cannot be read; ``skip`` tries all files
            first and leaves those out, which every report will then mention.
        prefetch: Batches that each worker prepares ahead.
        leave_out: A table with a column ``id`` of samples to leave out, such as the quarantine.csv
            of an audit, which every report will then mention.
        pin: Whether batches lie in page-locked memory; null means when there is a GPU.
    """

    cache: str | None = None
    corrupt: Literal["raise", "skip"] = "raise"
    prefetch: int = 2
    leave_out: str | None = None
    pin: bool | None = None


PREPROCESS, BALANCE, READING, FOLD = Preprocess(), Balance(), Reading(), Fold()


class ImageDataModule(LightningDataModule):
    """Batches ``{"image": float32 (B,3,H,W), "label": int64 (B,), "index": int64 (B,)}``.

    Under a trainer the loaders hand over bytes, which are normalized on the device. ``index`` is
    the row in ``manifest.table``. After ``view_names`` was called, evaluation batches
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
        balance: What is done about rare classes.
        reading: How files are read.
        predict_split: The split that ``predict`` goes through.
        allow_leaks: Whether ``fit`` goes on when the cheap part of the audit finds a leak, which
            every report will then mention; else it is an error.
        fold: Which part of the patients is tested, when they are tested in turn.
    """

    manifest: Manifest
    class_weights: list[float] | None
    _paths: list[str]

    def __init__(
        self,
        source: Source,
        class_names: list[str],
        preprocess: Preprocess = PREPROCESS,
        augment: str = "none",
        strengths: dict[str, float] | None = None,
        batch_size: int = 32,
        workers: int | None = None,
        seed: int = 0,
        balance: Balance = BALANCE,
        reading: Reading = READING,
        predict_split: Literal["train", "val", "test", "predict"] = "test",
        allow_leaks: bool = False,
        fold: Fold = FOLD,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.source, self.class_names, self.preprocess = source, class_names, preprocess
        self.augment = Augment(augment, strengths, preprocess.size if preprocess.margin else None)
        self.batch_size, self.seed, self.predict_split = batch_size, seed, predict_split
        self.workers = workers if workers is not None else _fitting_workers()
        self.balance, self.reading, self.class_weights = balance, reading, None
        self.allow_leaks, self.fold, self._views = allow_leaks, fold, {"": preprocess}

    def prepare_data(self) -> None:
        """Makes what the source has to make, and the cache, on one process."""
        self.source.prepare()
        if self.reading.cache is not None:
            self._listed()
            self._stores(self._views)

    def listed(self) -> Manifest:
        """The source's samples but for those to leave out, in the splits of the fold."""
        manifest, file = self.source.manifest(self.class_names), self.reading.leave_out
        manifest = self.fold.applied(manifest)
        if file is None:
            return manifest
        named = pd.read_csv(file, dtype=str)
        if "id" not in named:
            raise ValueError(f"leave_out: {file} has no column 'id'; it has {list(named)}")
        _refuse_strangers(set(named["id"]) - set(manifest.table["id"]), file)
        return manifest.without(set(named["id"]), f"left out by {Path(file).name}")

    def setup(self, stage: str) -> None:
        """Reads the manifest, once."""
        if not hasattr(self, "manifest"):
            self.manifest = self._readable(self._listed())
        for split in self._splits(stage):
            if not len(self.rows(split)):
                hint = "; the source's fractions cut it from train" if split != "train" else ""
                raise ValueError(f"the split {split!r} that {stage!r} needs has no pictures{hint}")
        if stage == "fit":
            self._refuse_absent_classes()
        if len(self.rows("train")):
            labels = self._labels(self.rows("train"))
            self.class_weights = self.balance.weights(labels, self.class_names)
        if stage == "fit" or self.allow_leaks:
            self.manifest = self._without_leaks(self.manifest)

    def _refuse_absent_classes(self) -> None:
        seen = set(self._labels(self.rows("train")))
        absent = [name for k, name in enumerate(self.class_names) if k not in seen]
        if absent:
            raise ValueError(f"the split 'train' has no picture of the classes {absent}")

    def view_names(self, views: list[dict[str, Any]]) -> list[str]:
        """The view of each Preprocess given as a dict; from now on batches carry all of them."""
        settings = [Preprocess.from_dict(values) for values in views]
        self._views = {view.name: view for view in settings}
        return [view.name for view in settings]

    def rows(self, split: str) -> np.ndarray:
        """Positions of a split's samples in the manifest; of train no more than the limit."""
        rows = self.manifest.rows(split)
        if split != "train":
            return rows
        ids = self.manifest.table["id"].iloc[rows].tolist()
        return self.balance.limited(rows, self._labels(rows), ids)

    def train_dataloader(self) -> LateLoader:
        """Shuffled and augmented, as a function of seed, epoch and index alone.

        A last batch of one picture, of which no batch norm could learn, is left out of the epoch.
        """
        rows = self.rows("train")
        pictures = self._pictures(rows, {"": self.preprocess}, self.augment)
        order = self._order(rows)
        single = len(order) % self.batch_size == 1 and len(order) > 1
        return self._loader(pictures, order, drop_last=single and self.batch_size > 1)

    def val_dataloader(self) -> LateLoader:
        """Every sample of val once."""
        return self._exact("val")

    def test_dataloader(self) -> LateLoader:
        """Every sample of test once."""
        return self._exact("test")

    def predict_dataloader(self) -> LateLoader:
        """Every sample of ``predict_split`` once."""
        return self._exact(self.predict_split)

    def on_after_batch_transfer(self, batch: Sample, dataloader_idx: int) -> Sample:
        """Bytes to floats, on the device that the batch is on by now."""
        seen = finished(batch, {"": self.preprocess, **self._views})
        if self.trainer is None:
            return seen
        return cast(Sample, self.trainer.precision_plugin.convert_input(seen))  # bf16-true

    def _splits(self, stage: str) -> list[str]:
        by_stage = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}
        return by_stage.get(stage, [self.predict_split])

    def _labels(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self.manifest.table["label"].to_numpy()[rows])

    def _readable(self, manifest: Manifest) -> Manifest:
        """Without the files that cannot be read, if they are to be skipped; with a note of it."""
        if self.reading.corrupt == "raise":
            return manifest
        paths = manifest.table["path"]
        stores = self._stores({"": self.preprocess})
        bad = stores[""].failures if stores else unreadable(paths.tolist())
        if not bad:
            return manifest
        lost = set(manifest.table.loc[paths.isin(set(bad)), "id"])
        return manifest.without(lost, "skipped: they cannot be read")

    def _without_leaks(self, manifest: Manifest) -> Manifest:
        """The manifest if no leak is found; with a note for each if they are allowed."""
        found = [finding.message for finding in cheap_leaks(manifest)]
        if found and not self.allow_leaks:
            told = "; ".join(found)
            raise ValueError(f"{told}. Run consilium audit, or set allow_leaks: true")
        notes = [f"leak that was allowed: {message}" for message in found]
        fresh = tuple(note for note in notes if note not in manifest.notes)
        return replace(manifest, notes=(*manifest.notes, *fresh)) if fresh else manifest

    def _listed(self) -> Manifest:
        """What is listed; its files are those of the cache, also where some are skipped."""
        manifest = self.listed()
        self._paths = manifest.table["path"].tolist()
        return manifest

    def _stores(self, views: dict[str, Preprocess]) -> dict[str, cache.Store]:
        if self.reading.cache is None:
            return {}
        root = Path(self.reading.cache)
        return {name: cache.opened(self._paths, view, root) for name, view in views.items()}

    def _pictures(
        self, rows: np.ndarray, views: dict[str, Preprocess], augment: Augment | None = None
    ) -> ImageDataset:
        stores = self._stores(views)
        return ImageDataset(self.manifest, rows, views, stores, augment, self.seed)

    def _order(self, rows: np.ndarray) -> ShuffledSampler:
        if self.balance.sampler == "shuffled":
            return ShuffledSampler(len(rows), self.seed, *self._place())
        kind = WeightedSampler if self.balance.sampler == "weighted" else BalancedSampler
        return kind(self._labels(rows), self.seed, *self._place())

    def _place(self) -> tuple[int, int]:
        if self.trainer is None:
            return 0, 1
        return self.trainer.global_rank, self.trainer.world_size

    def _exact(self, split: str) -> LateLoader:
        rows = self.rows(split)
        return self._loader(
            self._pictures(rows, self._views), ExactSampler(len(rows), *self._place())
        )

    def _loader(
        self,
        pictures: ImageDataset,
        sampler: ShuffledSampler | ExactSampler,
        drop_last: bool = False,
    ) -> LateLoader:
        pin = self.reading.pin
        whole: Any = as_it_is  # torch's type for it knows only lists of samples
        return LateLoader(
            pictures,
            batch_size=self.batch_size,
            sampler=sampler,
            drop_last=drop_last,
            num_workers=self.workers,
            pin_memory=torch.cuda.is_available() if pin is None else pin,
            persistent_workers=self.workers > 0,
            prefetch_factor=self.reading.prefetch if self.workers > 0 else None,
            collate_fn=whole,
            worker_init_fn=_alone,
            finish=None if self.trainer else partial(finished, views=pictures.views),
        )


def _refuse_strangers(ids: set[str], file: str) -> None:
    if ids:
        some = sorted(map(str, ids))[:3]
        raise ValueError(f"leave_out: {file} names {len(ids)} ids that the data lacks: {some}")


def _fitting_workers() -> int:
    return min(8, len(os.sched_getaffinity(0)))


def _alone(worker: int) -> None:
    """A worker is one of several: its libraries' own threads would only be in each other's way."""
    cv2.setNumThreads(0)
