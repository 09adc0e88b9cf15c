"""Frozen features: what the head of a network receives, computed once per image and network.

They are pooled as the network does it (the average of a convolutional network, the class token or
the average of a transformer; `backbone_args: {global_pool: NAME}` selects another way of timm), so
that a head which is fitted to them is the head of an ordinary network.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import timm
import torch
from rich.progress import track
from torch import Tensor, nn

from datamodules.cache import FEATURES, FeatureStore, code_version, file_hashes
from datamodules.datamodule import ImageDataModule
from lightning_modules import backbones
from lightning_modules.checkpoints import weights_hash
from lightning_modules.classifier import ImageClassifier
from lightning_modules.freezing import eval_mode

PART_IMAGES = 2048  # images of one file; an interrupted computation loses fewer
VERSION = 1  # of the code below, if it computes other features


class FeatureExtractor:
    """Computes features of samples by the network of a module that is attached to a trainer.

    `cache_dir` is the folder in which features are stored; None keeps them in memory.
    """

    def __init__(
        self, module: ImageClassifier, data: ImageDataModule, cache_dir: Path | None
    ) -> None:
        self.module, self.data, self.cache_dir = module, data, cache_dir
        self.head = head_layer(module.net, module.backbone)

    def features(self, rows: np.ndarray, epoch: int | None = None) -> np.ndarray:
        """Features (n, D) of manifest rows (n,).

        With `epoch`, of their images as they are augmented in that epoch.
        """
        keys, store = self._keys(rows, epoch), FeatureStore(self._folder(epoch))
        positions, start = store.missing(keys), 0
        arrays: list[np.ndarray] = []
        for batch in self._batches(rows[positions], epoch) if positions else ():
            arrays.append(batch)
            end = start + sum(map(len, arrays))
            if end - start >= PART_IMAGES or end == len(positions):
                store.add([keys[k] for k in positions[start:end]], np.concatenate(arrays))
                start, arrays = end, []
        return store.read(keys)

    def _batches(self, rows: np.ndarray, epoch: int | None) -> Iterator[np.ndarray]:
        """Yields features (B, D) of manifest rows in their order, computed by the network."""
        trainer, net = self.module.trainer, self.module.net
        loader, forward = self.data.ordered_dataloader(rows, epoch), trainer.precision_plugin
        with torch.inference_mode(), eval_mode(net), _inputs_of(self.head) as inputs:
            for batch in track(loader, "frozen features", disable=not trainer.is_global_zero):
                on_device = trainer.strategy.batch_to_device(batch)
                with forward.forward_context():
                    net(self.data.on_after_batch_transfer(on_device, 0)["image"])
                yield inputs.pop().float().cpu().numpy()

    def _keys(self, rows: np.ndarray, epoch: int | None) -> list[str]:
        """Keys of rows in the store: the hash of the image file, with augmentation also the row."""
        paths = self.data.manifest.table["path"].iloc[rows].tolist()
        if self.cache_dir is None:
            return [f"{row}" for row in rows]
        self.cache_dir.mkdir(parents=True, exist_ok=True)
        hashes = file_hashes(paths, self.cache_dir)
        suffixes = [""] * len(rows) if epoch is None else [f"/{row}" for row in rows]
        return [hashes[path] + suffix for path, suffix in zip(paths, suffixes, strict=True)]

    def _folder(self, epoch: int | None) -> Path | None:
        """Cache folder of this network, preprocessing, precision, augmentation, code; or None."""
        if self.cache_dir is None:
            return None
        state, augment = self.module.net.state_dict(), self.data.augment
        augmented = [augment.policy, augment.args, self.data.seed, epoch]
        heads = tuple(f"{name}." for name in backbones.head_names(self.module.net))
        settings = {
            "weights": weights_hash({k: v for k, v in state.items() if not k.startswith(heads)}),
            "network": [self.module.backbone, self.module.backbone_args, timm.__version__],
            "preprocess": self.data.preprocess.to_dict(),
            "precision": self.module.trainer.precision,
            "augment": None if epoch is None else augmented,
            "code": [VERSION, code_version(), torch.__version__],
        }
        key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:24]
        return self.cache_dir / f"{FEATURES}{key}"


def head_layer(net: nn.Module, backbone: str) -> nn.Linear:
    """The linear layer that computes the outputs of a network; ValueError for any other head."""
    layers = [net.get_submodule(name) for name in backbones.head_names(net)]
    if len(layers) != 1 or not isinstance(layers[0], nn.Linear):
        kinds = ", ".join(type(layer).__name__ for layer in layers) or "none that timm records"
        raise ValueError(f"the head of {backbone} is not one linear layer but {kinds}")
    return layers[0]


@contextmanager
def _inputs_of(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Context that appends what a layer receives in each forward pass to the yielded list."""
    inputs: list[Tensor] = []
    handle = layer.register_forward_pre_hook(lambda _, arguments: inputs.append(arguments[0]))
    try:
        yield inputs
    finally:
        handle.remove()
