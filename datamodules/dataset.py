"""The samples of one split as a torch data set."""

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset, get_worker_info

from datamodules.augment import Augment
from datamodules.cache import Store
from datamodules.images import read
from datamodules.manifest import Manifest
from datamodules.preprocess import Preprocess
from datamodules.samplers import STAND_IN

Sample = dict[str, Any]


class ImageDataset(Dataset[Sample]):
    """An item is asked for as ``(epoch, position)``; a file is decoded at most once an item.

    Args:
        manifest: All samples.
        rows: The split's positions in the manifest.
        views: What networks see, by name; the name "" alone gives a bare tensor.
        stores: Prepared pixels of the views that have them.
        augment: Applied between the kept pixels and the tensor; None in evaluation.
        seed: With the epoch and the index decides what augmentation does.
    """

    def __init__(
        self,
        manifest: Manifest,
        rows: np.ndarray,
        views: dict[str, Preprocess],
        stores: dict[str, Store],
        augment: Augment | None = None,
        seed: int = 0,
    ) -> None:
        self.paths = manifest.table["path"].to_numpy(dtype=object)[rows]
        self.labels = manifest.table["label"].to_numpy()[rows]
        self.rows, self.views, self.stores = rows, views, stores
        self.augment, self.seed = augment, seed

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, key: tuple[int, int]) -> Sample:
        batch = finished(self.__getitems__([key]), self.views)
        image = batch["image"]
        alone = {k: v[0] for k, v in image.items()} if isinstance(image, dict) else image[0]
        return {"image": alone, "label": int(batch["label"]), "index": int(batch["index"])}

    def __getitems__(self, keys: list[tuple[int, int]]) -> Sample:
        """A whole batch of bytes, a quarter of the weight of floats, yet to be ``finished``."""
        seen: dict[str, list[np.ndarray]] = {name: [] for name in self.views}
        for epoch, position in keys:
            rng_seed = (self.seed, epoch, int(self.rows[position]))
            for name, planes in self._planes(self.paths[position], rng_seed):
                seen[name].append(planes)
        image = {name: _together(pictures) for name, pictures in seen.items()}
        positions = [position for _, position in keys]
        label = torch.from_numpy(self.labels[positions].astype(np.int64))
        own = np.where(np.equal(positions, STAND_IN), STAND_IN, self.rows[positions])
        index = torch.from_numpy(own.astype(np.int64))
        return {"image": image.get("", image), "label": label, "index": index}

    def _planes(
        self, path: str, rng_seed: tuple[int, int, int]
    ) -> Iterator[tuple[str, np.ndarray]]:
        image = None if len(self.stores) == len(self.views) else read(path)
        for name, view in self.views.items():
            pixels = self.stores[name].pixels(path) if image is None else view.pixels(image)
            yield name, view.planes(self.augment(pixels, rng_seed) if self.augment else pixels)


def finished(batch: Sample, views: dict[str, Preprocess]) -> Sample:
    """The batch as networks want it: float32, normalized on the device where it lies.

    A batch that is finished already stays as it is.
    """
    image = batch["image"]
    if isinstance(image, dict):
        done: Any = {name: _float(seen, views[name]) for name, seen in image.items()}
    else:
        done = _float(image, views[""])
    return {**batch, "image": done}


def as_it_is(batch: Sample) -> Sample:
    """What a loader makes of a batch that already is one."""
    return batch


def _float(seen: torch.Tensor, view: Preprocess) -> torch.Tensor:
    return view.normalized(seen) if seen.dtype == torch.uint8 else seen


def _together(pictures: list[np.ndarray]) -> torch.Tensor:
    """(B, C, H, W); in a worker it lies in memory that the main process can read.

    Gray pictures keep one channel unless a color picture is among them.
    """
    shape = (len(pictures), max(len(planes) for planes in pictures), *pictures[0].shape[1:])
    batch = _room(shape)
    into = batch.numpy()
    for k, planes in enumerate(pictures):
        into[k] = planes
    return batch


def _room(shape: tuple[int, ...]) -> torch.Tensor:
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    empty: Any = torch.empty(0, dtype=torch.uint8)
    shared: Any = torch.UntypedStorage  # as torch's own collate function makes room
    batch: torch.Tensor = empty.set_(shared._new_shared(math.prod(shape)), 0, shape)
    return batch
