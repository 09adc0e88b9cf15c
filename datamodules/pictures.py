"""The samples of one split as a torch data set."""

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


class Pictures(Dataset[Sample]):
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
        batch = self.__getitems__([key])
        image = batch["image"]
        alone = {k: v[0] for k, v in image.items()} if isinstance(image, dict) else image[0]
        return {"image": alone, "label": int(batch["label"]), "index": int(batch["index"])}

    def __getitems__(self, keys: list[tuple[int, int]]) -> Sample:
        """A whole batch, written straight to where it will be read: nothing is stacked after."""
        seen = {name: _room(len(keys), view.size) for name, view in self.views.items()}
        for k, (epoch, position) in enumerate(keys):
            into = {name: batch[k] for name, batch in seen.items()}
            rng_seed = (self.seed, epoch, int(self.rows[position]))
            self._write(self.paths[position], rng_seed, into)
        positions = [position for _, position in keys]
        label = torch.from_numpy(self.labels[positions].astype(np.int64))
        own = np.where(np.equal(positions, STAND_IN), STAND_IN, self.rows[positions])
        index = torch.from_numpy(own.astype(np.int64))
        return {"image": seen.get("", seen), "label": label, "index": index}

    def _write(
        self, path: str, rng_seed: tuple[int, int, int], into: dict[str, torch.Tensor]
    ) -> None:
        image = None if len(self.stores) == len(self.views) else read(path)
        for name, view in self.views.items():
            pixels = self.stores[name].pixels(path) if image is None else view.pixels(image)
            pixels = self.augment(pixels, rng_seed) if self.augment else pixels
            view.tensor(pixels, into[name])


def as_it_is(batch: Sample) -> Sample:
    """What a loader makes of a batch that already is one."""
    return batch


def _room(count: int, size: int) -> torch.Tensor:
    """An empty batch; in a worker it lies in memory that the main process can read."""
    if get_worker_info() is None:
        return torch.empty(count, 3, size, size)
    empty: Any = torch.empty(0)
    shared: Any = torch.UntypedStorage  # as torch's own collate function makes room
    storage = shared._new_shared(count * 3 * size * size * 4)
    batch: torch.Tensor = empty.set_(storage, 0, (count, 3, size, size))
    return batch
