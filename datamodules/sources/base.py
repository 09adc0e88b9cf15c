"""The base class of dataset sources, and what several sources share."""

from abc import ABC, abstractmethod
from pathlib import Path

import pandas as pd

from datamodules.manifest import Manifest
from datamodules.splits import SplitFractions

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm"])
UNKNOWN_PATIENTS = "patients are unknown: images of one patient may be in more than one split"


class Source(ABC):
    """A dataset: lists its samples with label, split and patient."""

    def prepare(self) -> None:
        """Creates or downloads what is missing; called once, in one process."""
        return

    @abstractmethod
    def manifest(self, class_names: list[str]) -> Manifest:
        """All samples; raises ValueError if the class names do not match the files."""


def find_image_files(root: Path) -> list[Path]:
    """Paths of all images below a folder, relative to it; ValueError if there are none.

    Hidden files and folders (``._x.png``, ``.ipynb_checkpoints/x.png``) are skipped.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    paths = [path.relative_to(root) for path in sorted(root.rglob("*"))]
    files = [path for path in paths if path.suffix.lower() in SUFFIXES and not _is_hidden(path)]
    if not files:
        raise ValueError(f"{root}: no image files ({' '.join(sorted(SUFFIXES))}) below it")
    return files


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def complete_splits(
    file_splits: list[str] | None, table: pd.DataFrame, fractions: SplitFractions | None
) -> list[str]:
    """The splits of the files; with fractions, missing ones are taken from train by patient."""
    if fractions is None:
        return file_splits or []
    return fractions.assign(table["patient"], table["label"].tolist(), file_splits)


def check_class_names(names_in_files: list[str], class_names: list[str], where: Path) -> None:
    """Raises ValueError if the class names are not those in the files."""
    if sorted(class_names) != names_in_files:
        raise ValueError(f"{where}: classes in the files are {names_in_files}, not {class_names}")
