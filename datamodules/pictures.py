"""The samples of one split as a torch data set."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

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
        epoch, position = key
        index = int(self.rows[position]) if position != STAND_IN else STAND_IN
        seen = self._seen(self.paths[position], (self.seed, epoch, index))
        bare = seen.get("", seen)
        return {"image": bare, "label": int(self.labels[position]), "index": index}

    def _seen(self, path: str, rng_seed: tuple[int, int, int]) -> dict[str, torch.Tensor]:
        image = None if len(self.stores) == len(self.views) else read(path)
        augmented = partial(self.augment, rng_seed=rng_seed) if self.augment else np.asarray
        out = {}
        for name, view in self.views.items():
            kept = view.pixels(image) if image is not None else self.stores[name].pixels(path)
            out[name] = view.tensor(augmented(kept))
        return out
