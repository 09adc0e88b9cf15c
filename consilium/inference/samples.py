"""Samples of a dataset: examples of each class, rows of a split, augmented images."""

from pathlib import Path

import cv2
import numpy as np
import pandas as pd

from consilium.inference.data_config import load_datamodule
from consilium.inference.panels import encode_png, read_thumbnail
from datamodules.augment import AUGMENTATIONS, Augment
from datamodules.datamodule import ImageDataModule
from datamodules.images import read_image
from datamodules.manifest import Manifest
from datamodules.preprocess import Preprocess
from evaluation.reports.html import Thumbnails

CELL = 168  # pixels; side of an image in the augmentation sheet
COLUMNS = 8  # of the augmentation sheet


def example_images(manifest: Manifest, split: str = "train", per_class: int = 4) -> Thumbnails:
    """The first images of each class of a split, with class and id."""
    table = manifest.table[manifest.table["split"] == split]
    rows = table.groupby("label").head(per_class).sort_values("label", kind="stable")
    names = [manifest.class_names[k] if k >= 0 else "unknown" for k in rows["label"]]
    captions = [f"{name}\n{sample}" for name, sample in zip(names, rows["id"], strict=True)]
    return Thumbnails([read_thumbnail(Path(path)) for path in rows["path"]], captions)


def sample_rows(manifest: Manifest, split: str, count: int) -> pd.DataFrame:
    """At most `count` labeled samples of a split, evenly spaced."""
    table = manifest.table
    return evenly_spaced(table[(table["split"] == split) & (table["label"] >= 0)], count)


def evenly_spaced(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """At most `count` rows, evenly spaced, because a table may be sorted by class."""
    rows = np.linspace(0, len(table) - 1, min(count, len(table))).round().astype(int)
    return table.iloc[rows]


def read_split(
    configs: list[str], split: str, class_names: list[str], limit: int | None = None
) -> pd.DataFrame:
    """Rows of a split of the dataset in config files, at most `limit`, evenly spaced.

    The data must have the given classes in the given order.
    """
    data = load_datamodule(configs)
    if data.class_names != class_names:
        raise ValueError(f"the data has classes {data.class_names}, the model {class_names}")
    data.prepare_data()
    table: pd.DataFrame = data.load_manifest().table
    table = table[table["split"] == split]
    if table.empty:
        raise ValueError(f"--split {split}: the dataset has no images in this split")
    return evenly_spaced(table, limit or len(table))


def augmentation_sheet(manifest: Manifest, data: ImageDataModule | None = None) -> bytes:
    """PNG with one row per image: the image, then seven augmentations of it.

    The augmentation is that of the data; without data, each row shows another policy.
    """
    if data is not None:
        preprocess, augmentations = data.preprocess, [data.augment] * 6
    else:
        names = [name for name in sorted(AUGMENTATIONS) if name != "none"]
        preprocess, augmentations = Preprocess(), [Augment(name) for name in names]
    paths = manifest.table["path"]
    indices = np.linspace(0, len(paths) - 1, len(augmentations)).astype(int)
    rows = [
        _sheet_row(preprocess, augment, paths.iloc[k], int(k))
        for k, augment in zip(indices, augmentations, strict=True)
    ]
    return encode_png(np.vstack(rows))


def _sheet_row(preprocess: Preprocess, augment: Augment, path: str, index: int) -> np.ndarray:
    pixels = preprocess.to_pixels(read_image(path))
    images = [pixels, *(augment(pixels, (0, epoch, index)) for epoch in range(COLUMNS - 1))]
    cells = [cv2.resize(image, (CELL, CELL), interpolation=cv2.INTER_AREA) for image in images]
    return np.hstack([c if c.ndim == 3 else cv2.cvtColor(c, cv2.COLOR_GRAY2RGB) for c in cells])
