"""The samples of one split as a torch dataset, and a DataLoader for it."""

import math
import signal
from collections.abc import Callable, Iterator
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from datamodules.augment import Augment
from datamodules.cache import PixelStore
from datamodules.images import read_image
from datamodules.manifest import Manifest
from datamodules.preprocess import Preprocess
from datamodules.samplers import PLACEHOLDER

Batch = dict[str, Any]
AnyIterator = Any  # an Iterator[Batch]; torch declares a private class for it


class ImageDataset(Dataset[Batch]):
    """Samples of some manifest rows, indexed by ``(epoch, position in rows)``.

    ``views`` maps view names to preprocessing; the single name "" gives a tensor instead of a dict.
    ``stores`` maps them to cached pixels; if one lacks, the file is decoded once for all views.
    The augmentation depends on seed, epoch and row.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: np.ndarray,
        views: dict[str, Preprocess],
        stores: dict[str, PixelStore],
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.paths = manifest.table["path"].to_numpy(dtype=object)[rows]
        self.labels = manifest.labels[rows]
        self.rows, self.views, self.stores = rows, views, stores
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: list[tuple[int, int]]) -> Batch:
        """A batch of uint8 images, a quarter of the size of floats; see ``normalize_batch``."""
        images: dict[str, list[np.ndarray]] = {name: [] for name in self.views}
        for epoch, position in keys:
            rng_seed = (self.seed, epoch, int(self.rows[position]))
            for name, channels in self._load(self.paths[position], rng_seed):
                images[name].append(channels)
        image = {name: _stack(arrays) for name, arrays in images.items()}
        positions = [position for _, position in keys]
        rows = np.where(np.equal(positions, PLACEHOLDER), PLACEHOLDER, self.rows[positions])
        labels = self.labels[positions]
        label, index = (torch.from_numpy(v.astype(np.int64)) for v in (labels, rows))
        return {"image": image.get("", image), "label": label, "index": index}

    def _load(self, path: str, rng_seed: tuple[int, int, int]) -> Iterator[tuple[str, np.ndarray]]:
        """Yields name and uint8 image (C, H, W) of each view of a file, augmented."""
        image = None if len(self.stores) == len(self.views) else read_image(path)
        for name, view in self.views.items():
            pixels = self.stores[name].pixels(path) if image is None else view.to_pixels(image)
            yield name, view.to_channels(self.augment(pixels, rng_seed) if self.augment else pixels)


class LazyDataLoader(DataLoader[Batch]):
    """A DataLoader that starts its workers at the first batch instead of at ``iter``.

    Lightning calls ``iter`` before it reads the epoch from a checkpoint; workers that start at
    once would repeat the order of epoch 0. ``transform`` changes batches in the main process.
    """

    def __init__(self, *args: Any, transform: Callable[[Batch], Batch], **kwargs: Any) -> None:
        options: dict[str, Any] = {"collate_fn": identity, "worker_init_fn": prepare_worker}
        super().__init__(*args, **options | kwargs)
        self.transform = transform

    def __iter__(self) -> AnyIterator:
        yield from map(self.transform, super().__iter__())


def normalize_batch(batch: Batch, views: dict[str, Preprocess]) -> Batch:
    """The batch with float32 images, normalized on their device; float images are left as is."""
    image = batch["image"]
    images = image if isinstance(image, dict) else {"": image}
    normalized = {
        k: views[k].normalize(x) if x.dtype == torch.uint8 else x for k, x in images.items()
    }
    return {**batch, "image": normalized.get("", normalized)}


def identity(batch: Batch) -> Batch:
    """The batch as it is; the ``collate_fn``, because the dataset already makes batches."""
    return batch


def prepare_worker(worker_id: int) -> None:
    """Turns off OpenCV's threads, and ignores SIGTERM, in a worker.

    Schedulers send SIGTERM to all processes; the main one then ends the epoch and its workers.
    """
    cv2.setNumThreads(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _stack(arrays: list[np.ndarray]) -> torch.Tensor:
    """uint8 (B, C, H, W) of B images, in shared memory in a worker; C is 3 if any is in color."""
    shape = (len(arrays), max(map(len, arrays)), *arrays[0].shape[1:])
    if get_worker_info() is None:
        batch = torch.empty(shape, dtype=torch.uint8)
    else:
        storage: Any = torch.UntypedStorage  # as torch's own collate function allocates it
        empty: Any = torch.empty(0, dtype=torch.uint8)
        batch = empty.set_(storage._new_shared(math.prod(shape)), 0, shape)
    for pixels, channels in zip(batch.numpy(), arrays, strict=True):
        pixels[:] = channels
    return batch
