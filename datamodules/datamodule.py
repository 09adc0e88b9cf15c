"""LightningDataModule for image classification: manifest, preprocessing, augmentation, loaders."""

import os
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Protocol, cast, runtime_checkable

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import Sampler

from datamodules import cache
from datamodules.audit.audit import find_leaks_without_decoding, find_recorded_leaks
from datamodules.augment import Augment
from datamodules.dataset import Batch, ImageDataset, LazyDataLoader, identity, normalize_batch
from datamodules.images import content_hashes, find_unreadable
from datamodules.manifest import Manifest, one_hot_labels, read_table
from datamodules.preprocess import Preprocess, as_settings
from datamodules.samplers import Balance, ExactSampler, FixedSampler
from datamodules.sources import Source
from datamodules.splits import Fold


@runtime_checkable
class MultiViewModule(Protocol):
    """A LightningModule whose members need their own preprocessing, such as an ensemble."""

    member_preprocesses: list[dict[str, Any]]  # ``Preprocess.to_dict()`` of each member


PREPROCESS, BALANCE, FOLD = Preprocess(), Balance(), Fold()


class ImageDataModule(LightningDataModule):
    """Batches ``{"image": float32 (B,3,H,W), "label": int64 (B,), "index": int64 (B,)}``.

    ``label`` is (B, K) if images have several findings: 1, 0, or -1 if unknown.
    ``index`` is the row number in ``manifest.table``. For an ensemble (``member_preprocesses``),
    ``"image"`` of evaluation batches is a dict with one tensor for each distinct Preprocess, by its
    name. Under a trainer, loaders return uint8 images, which are normalized on the device.

    From Python, ``preprocess``, ``balance`` and ``fold`` may also be dicts of their settings.

    Args:
        source: Where images, labels, patients and splits come from.
        class_names: The name of each label, in order; they must match the names in the files.
        preprocess: Size, fit, CLAHE and normalization of every image.
        augment: Policy for training images: none, fracture, retina, mura, chest or gradcam.
        augment_args: Changes of the policy's defaults, such as ``{rotate: 10.0}``.
        batch_size: Number of images per batch and process.
        num_workers: Number of loader processes; null uses the number of cores, at most 8.
        pin_memory: As in torch: use page-locked memory; null means only if there is a GPU.
        prefetch_factor: Number of batches that each worker loads in advance, as in torch.
        cache_dir: Folder for preprocessed pixels, such as ``data/cache``; null decodes each epoch.
        seed: Seed of the order of training samples and of the augmentation.
        balance: Class weights, sampler and maximum per class, for rare classes.
        corrupt: ``raise`` stops at a file that cannot be read; ``skip`` tries all files first and
            leaves those out, with a note in every report.
        exclude: A CSV with a column ``id`` of samples that are left out, such as the
            quarantine.csv of ``consilium audit``, with a note in every report.
        predict_split: The split of ``predict``.
        allow_leaks: Whether ``fit`` goes on if the same patient or file is in several splits, or if
            ``consilium audit`` found copies in several splits of this manifest, with a note in
            every report; by default this is an error.
        fold: The fold of a cross-validation by patient.
        clinical_use: What reports measure beyond single classes, such as
            ``{class_groups: {referable: [2, 3, 4]}, threshold: 0.2, prevalences: [0.01, 0.1]}``;
            see ``evaluation.metrics.clinical.ClinicalUse``. It changes no prediction.
    """

    def __init__(
        self,
        source: Source,
        class_names: list[str],
        preprocess: Preprocess = PREPROCESS,
        augment: str = "none",
        augment_args: dict[str, float] | None = None,
        batch_size: int = 32,
        num_workers: int | None = None,
        pin_memory: bool | None = None,
        prefetch_factor: int = 2,
        cache_dir: str | None = None,
        seed: int = 0,
        balance: Balance = BALANCE,
        corrupt: Literal["raise", "skip"] = "raise",
        exclude: str | None = None,
        predict_split: Literal["train", "val", "test", "predict"] = "test",
        allow_leaks: bool = False,
        fold: Fold = FOLD,
        clinical_use: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if batch_size < 1:
            raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
        self.source, self.class_names = source, class_names
        self.preprocess = preprocess = as_settings(Preprocess, preprocess)
        self.balance, self.fold = as_settings(Balance, balance), as_settings(Fold, fold)
        self.views = {"": preprocess}  # of evaluation batches
        crop = preprocess.size if preprocess.margin else None
        self.augment = Augment(augment, augment_args, crop)
        self.batch_size, self.seed, self.predict_split = batch_size, seed, predict_split
        cores = len(os.sched_getaffinity(0))
        self.num_workers = num_workers if num_workers is not None else min(8, cores)
        self.pin_memory = torch.cuda.is_available() if pin_memory is None else pin_memory
        self.prefetch_factor, self.cache_dir, self.corrupt = prefetch_factor, cache_dir, corrupt
        self.exclude, self.allow_leaks, self.clinical_use = exclude, allow_leaks, clinical_use
        self.class_weights: list[float] | list[list[float]] | None = None
        self._manifest: Manifest | None = None
        self._used_images: tuple[np.ndarray, np.ndarray] | None = None
        self._cached_paths: list[str] = []

    @property
    def manifest(self) -> Manifest:
        """The table of samples; RuntimeError before ``setup``."""
        if self._manifest is None:
            raise RuntimeError("ImageDataModule has no manifest before setup(); call it first")
        return self._manifest

    def prepare_data(self) -> None:
        """Calls ``source.prepare`` and builds the pixel cache; Lightning does so in one process."""
        self.source.prepare()
        if self.cache_dir is not None:
            self._read_views()
            self._cached_paths = self.load_manifest().table["path"].tolist()
            check = {"": self.preprocess} if self.corrupt == "skip" else {}
            self._open_stores(check | self.views)

    def load_manifest(self) -> Manifest:
        """The source's manifest with the splits of ``fold``, without the samples of ``exclude``.

        It has at most ``balance.max_per_class`` samples per class if that limits all splits.
        """
        manifest = self.fold.apply(self.source.manifest(self.class_names))
        if self.exclude is not None:
            try:
                excluded = read_table(Path(self.exclude)).astype(str)
            except ValueError as error:
                raise ValueError(f"exclude: {error}") from None
            if "id" not in excluded:
                columns = list(excluded)
                raise ValueError(f"exclude: {self.exclude} has no column 'id'; it has {columns}")
            if unknown := sorted(map(str, set(excluded["id"]) - set(manifest.table["id"]))):
                message = f"{len(unknown)} ids that are not in the data: {unknown[:3]}"
                raise ValueError(f"exclude: {self.exclude} has {message}")
            reason = f"excluded by {Path(self.exclude).name}"
            manifest = manifest.drop(set(excluded["id"]), reason)
        return self.balance.limit_manifest(manifest)

    def setup(self, stage: str) -> None:
        """Loads the manifest once and sets ``class_weights``.

        Raises ValueError if a split that the stage needs is empty, or, for ``fit``, if a class has
        no training images or there is a leak.
        """
        stage = stage[:]  # plain text, also of Lightning's enumeration
        self._read_views()
        if self._manifest is None:
            manifest = self.load_manifest()
            # the cache has all files, so that its key does not depend on the skipped ones
            self._cached_paths = manifest.table["path"].tolist()
            self._manifest = self._skip_unreadable(manifest)
        by_stage = {"fit": ["train", "val"], "validate": ["val"], "test": ["test"]}
        for split in by_stage.get(stage, [self.predict_split]):
            if not len(self.rows(split)):
                hint = "; set the source's fractions to take it from train" * (split != "train")
                raise ValueError(f"the split {split!r} that {stage!r} needs has no images{hint}")
        labels = self._labels(self.rows("train"))
        if self._manifest.is_multi_label and (self.clinical_use or {}).get("class_groups"):
            raise ValueError("clinical_use.class_groups needs one label per image, not findings")
        counts = one_hot_labels(labels, len(self.class_names)).sum(axis=0)
        absent = [name for name, n in zip(self.class_names, counts, strict=True) if not n]
        if stage == "fit" and absent:
            raise ValueError(f"the split 'train' has no images of the classes {absent}")
        if len(labels):
            self.class_weights = self.balance.compute_class_weights(labels, self.class_names)
        if stage == "fit" or self.allow_leaks:
            self._manifest = self._check_leaks(self._manifest)

    def rows(self, split: str) -> np.ndarray:
        """Manifest row numbers of a split; of train at most ``balance.max_per_class`` per class."""
        rows = self.manifest.rows(split)
        if split != "train":
            return rows
        ids = self.manifest.table["id"].iloc[rows].tolist()
        return self.balance.limit_rows(rows, self._labels(rows), ids)

    def paths(self, split: str) -> list[str]:
        """The files of a split, in the order of ``rows``."""
        return list(self.manifest.table["path"].iloc[self.rows(split)])

    def used_images(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted int64 content hashes of the images of train and of val, each hash once.

        Left out are images that a later split has as well, as ``allow_leaks`` permits.
        """
        if self._used_images is None:
            splits = ("train", "val", "test") if self.allow_leaks else ("train", "val")
            train, val, *test = (content_hashes(self.paths(split)) for split in splits)
            later = np.concatenate([val, *test])
            self._used_images = np.setdiff1d(train, later), np.setdiff1d(val, test)
        return self._used_images

    def train_dataloader(self) -> LazyDataLoader:
        """Loader of train, shuffled and augmented by seed, epoch and row number only."""
        rows, views = self.rows("train"), {"": self.preprocess}
        stores = self._open_stores(views)
        dataset = ImageDataset(self.manifest, rows, views, stores, self.augment, self.seed)
        labels, processes = self._labels(rows), self._rank_and_world_size()
        sampler = self.balance.make_sampler(labels, self.seed, *processes)
        # a last batch of a single image would break batch norm
        is_single = len(sampler) % self.batch_size == 1 and len(sampler) > 1
        return self._loader(dataset, sampler, drop_last=is_single and self.batch_size > 1)

    def val_dataloader(self) -> LazyDataLoader:
        """Loader of every sample of val once, over all processes."""
        return self._evaluation_loader("val")

    def test_dataloader(self) -> LazyDataLoader:
        """Loader of every sample of test once, over all processes."""
        return self._evaluation_loader("test")

    def predict_dataloader(self) -> LazyDataLoader:
        """Loader of every sample of ``predict_split`` once, over all processes."""
        return self._evaluation_loader(self.predict_split)

    def ordered_dataloader(self, rows: np.ndarray, epoch: int | None = None) -> LazyDataLoader:
        """Loader of these manifest rows in this order, augmented as in ``epoch`` if it is given."""
        views = {"": self.preprocess}
        augment = None if epoch is None else self.augment
        stores = self._open_stores(views)
        dataset = ImageDataset(self.manifest, rows, views, stores, augment, self.seed)
        return self._loader(dataset, FixedSampler((epoch or 0, k) for k in range(len(rows))))

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Normalizes uint8 images on the device of the batch."""
        normalized = normalize_batch(batch, {"": self.preprocess, **self.views})
        if self.trainer is None:
            return normalized
        return cast(Batch, self.trainer.precision_plugin.convert_input(normalized))  # bf16-true

    def _read_views(self) -> None:
        """Sets ``views`` (Preprocess by name) as the trainer's LightningModule needs them."""
        if self.trainer is None:
            return
        module, self.views = self.trainer.lightning_module, {"": self.preprocess}
        if isinstance(module, MultiViewModule):
            views = [Preprocess.from_dict(values) for values in module.member_preprocesses]
            self.views = {view.name: view for view in views}

    def _labels(self, rows: np.ndarray) -> np.ndarray:
        """The labels (n,) of n manifest rows, or those of several findings (n, K)."""
        return np.asarray(self.manifest.labels[rows])

    def _skip_unreadable(self, manifest: Manifest) -> Manifest:
        """The manifest; if ``corrupt`` is skip, without unreadable files, which a note lists."""
        if self.corrupt == "raise":
            return manifest
        paths = manifest.table["path"]
        stores = self._open_stores({"": self.preprocess})
        failures = stores[""].failures if stores else find_unreadable(paths.tolist())
        ids = set(manifest.table.loc[paths.isin(set(failures)), "id"])
        return manifest.drop(ids, "skipped because they cannot be read")

    def _check_leaks(self, manifest: Manifest) -> Manifest:
        """The manifest with a note per leak; ValueError if there are leaks that are not allowed."""
        recorded, folder = find_recorded_leaks(manifest.digest())
        leaks = [issue.message for issue in find_leaks_without_decoding(manifest)]
        leaks += [message for message in recorded if message not in leaks]
        if leaks and not self.allow_leaks:
            exclude = f"--data.init_args.exclude {folder or 'runs/audit-NAME'}/quarantine.csv"
            remedy = f"add {exclude}" if folder else f"run consilium audit, then add {exclude}"
            raise ValueError(f"{'; '.join(leaks)}. To fix it, {remedy}, or set allow_leaks: true")
        notes = [*manifest.notes, *(f"allowed leak: {message}" for message in leaks)]
        return replace(manifest, notes=tuple(dict.fromkeys(notes)))

    def _open_stores(self, views: dict[str, Preprocess]) -> dict[str, cache.PixelStore]:
        """Cached pixels for each view, by view name; empty without ``cache_dir``."""
        if self.cache_dir is None:
            return {}
        root, paths = Path(self.cache_dir), self._cached_paths
        return {name: cache.open_store(paths, view, root) for name, view in views.items()}

    def _rank_and_world_size(self) -> tuple[int, int]:
        trainer = self.trainer
        return (trainer.global_rank, trainer.world_size) if trainer is not None else (0, 1)

    def _evaluation_loader(self, split: str) -> LazyDataLoader:
        """Loader of every sample of a split once, in all views."""
        rows = self.rows(split)
        sampler = ExactSampler(len(rows), *self._rank_and_world_size())
        dataset = ImageDataset(self.manifest, rows, self.views, self._open_stores(self.views))
        return self._loader(dataset, sampler)

    def _loader(
        self, dataset: ImageDataset, sampler: Sampler[Any], drop_last: bool = False
    ) -> LazyDataLoader:
        """Loader with these settings; ``overfit_batches`` repeats the sampler's first epoch."""
        if self.trainer is not None and vars(self.trainer)["overfit_batches"]:
            sampler = FixedSampler(sampler)
        return LazyDataLoader(
            dataset, batch_size=self.batch_size, sampler=sampler, drop_last=drop_last,
            num_workers=self.num_workers, pin_memory=self.pin_memory,
            persistent_workers=self.num_workers > 0,
            prefetch_factor=self.prefetch_factor if self.num_workers > 0 else None,
            transform=identity if self.trainer else partial(normalize_batch, views=dataset.views),
        )  # fmt: skip
