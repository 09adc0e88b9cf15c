"""Pictures of a data set to look at: some of each class, and what augmentation makes of them."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from consilium.inference.thumbnails import png, thumbnail
from datamodules.augment import Augment, policies
from datamodules.datamodule import ImageDataModule
from datamodules.images import read
from datamodules.manifest import Manifest
from datamodules.preprocess import Preprocess
from evaluation.reports.html import Thumbnails

HEIGHT = 168


def examples(manifest: Manifest, split: str = "train", each: int = 4) -> Thumbnails:
    """The first pictures of each class of a split, with class and id."""
    table = manifest.table[manifest.table["split"] == split]
    some = table.groupby("label").head(each).sort_values("label", kind="stable")
    names = [manifest.class_names[k] if k >= 0 else "unknown" for k in some["label"]]
    captions = [f"{name}\n{sample}" for name, sample in zip(names, some["id"], strict=True)]
    return Thumbnails([thumbnail(Path(path)) for path in some["path"]], captions)


def some(manifest: Manifest, split: str, count: int) -> pd.DataFrame:
    """At most `count` labeled samples of a split, evenly spread over it."""
    table = manifest.table
    return spread(table[(table["split"] == split) & (table["label"] >= 0)], count)


def spread(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, evenly spread: a folder may be listed class by class."""
    at = np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int)
    return table.iloc[at]


def sheet(manifest: Manifest, data: ImageDataModule | None = None) -> bytes:
    """PNG: a row a picture, as it is, then seven times augmented; without data, a row a policy."""
    if data is not None:
        view, rules = data.preprocess, [data.augment] * 6
    else:
        view, rules = Preprocess(), [Augment(name) for name in policies() if name != "none"]
    paths = manifest.table["path"]
    chosen = np.linspace(0, len(paths) - 1, len(rules)).astype(int)
    rows = [_row(view, rule, paths.iloc[k], int(k)) for k, rule in zip(chosen, rules, strict=True)]
    return png(np.vstack(rows))


def _row(view: Preprocess, rule: Augment, path: str, index: int) -> np.ndarray:
    pixels = view.pixels(read(path))
    cells = [pixels, *(rule(pixels, (0, epoch, index)) for epoch in range(7))]
    small = [cv2.resize(cell, (HEIGHT, HEIGHT), interpolation=cv2.INTER_AREA) for cell in cells]
    return np.hstack([c if c.ndim == 3 else cv2.cvtColor(c, cv2.COLOR_GRAY2RGB) for c in small])
