"""What every source has: it lists its samples, by split, patient and class."""

from abc import ABC, abstractmethod
from pathlib import Path

import pandas as pd

from datamodules.manifest import Manifest
from datamodules.splits import Fractions

SUFFIXES = frozenset([".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".dcm"])
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
NO_PATIENTS = "patients are unknown: a patient's pictures may stand on both sides of a split"


class Source(ABC):
    """Something that can list its samples."""

    def prepare(self) -> None:
        """Makes or fetches what is missing; called once, on one process, before ``manifest``."""
        return

    @abstractmethod
    def manifest(self, class_names: list[str]) -> Manifest:
        """All samples; class names that differ from what the files say are refused."""


def picture_files(root: Path) -> list[Path]:
    """Every picture below a folder, by its path from there; there must be one.

    What begins with a dot is of the system or of an editor: `._x.png`, `.ipynb_checkpoints/x.png`.
    """
    if not root.is_dir():
        raise ValueError(f"{root}: no such folder")
    found = [path.relative_to(root) for path in sorted(root.rglob("*"))]
    files = [path for path in found if path.suffix.lower() in SUFFIXES and not _hidden(path)]
    if not files:
        raise ValueError(f"{root}: no picture files ({' '.join(sorted(SUFFIXES))}) below it")
    return files


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def completed(
    said: list[str] | None, table: pd.DataFrame, fractions: Fractions | None
) -> list[str]:
    """The splits that the files say, completed from train if that is asked for."""
    if fractions is None:
        return said or []
    return fractions.split(table["patient"], table["label"].tolist(), said)


def check_names(found: list[str], class_names: list[str], where: Path) -> None:
    """Refuses class names that are not those in the files."""
    if sorted(class_names) != found:
        raise ValueError(f"{where}: the files say {found}, class_names says {class_names}")
