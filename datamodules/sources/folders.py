"""A dataset of images in one folder per class."""

import re
from pathlib import Path

import pandas as pd

from datamodules.manifest import SPLIT_ALIASES, Manifest
from datamodules.sources.base import (
    UNKNOWN_PATIENTS,
    Source,
    check_class_names,
    complete_splits,
    find_image_files,
)
from datamodules.splits import SplitFractions


class Folders(Source):
    """One folder per class: ``ROOT/train/normal/p12_1.png``, or ``ROOT/normal/p12_1.png``.

    Split folders are named train, val (valid, validation) and test; without them, the splits are
    made by patient from ``fractions``.

    Args:
        root: The folder that contains the split folders or the class folders.
        patient: Regular expression whose first group is the patient, searched in the path below
            ``root``: ``(p[0-9]+)_`` for the example above. null if the paths have no patient IDs,
            with a note in every report.
        fractions: Fractions of patients for val and test if these folders are missing.
    """

    def __init__(
        self, root: str, patient: str | None, fractions: SplitFractions | None = None
    ) -> None:
        if patient is not None and not _num_groups(patient):
            raise ValueError(f"patient: {patient!r} has no group (...) for the patient")
        self.root, self.patient, self.fractions = Path(root), patient, fractions

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row per image file; its id is the path below ``root``."""
        files = find_image_files(self.root)
        has_splits = any(path.parts[0].lower() in SPLIT_ALIASES for path in files)
        table = pd.DataFrame({"id": [path.as_posix() for path in files]})
        table["path"] = [str(self.root / path) for path in files]
        table["label"] = self._labels(files, int(has_splits), class_names)
        table["patient"] = self.patients(table["id"])
        table["split"] = self._splits(files, table, has_splits)
        table["study"] = table["patient"]
        notes = () if self.patient else (UNKNOWN_PATIENTS,)
        return Manifest(table, class_names, notes)

    def patients(self, ids: pd.Series) -> list[str]:
        """The patient of each image; without an expression, every image is its own patient."""
        if self.patient is None:
            return ids.tolist()
        matches = [re.search(self.patient, name) for name in ids]
        unmatched = [name for name, match in zip(ids, matches, strict=True) if match is None]
        if unmatched:
            raise ValueError(f"patient is {self.patient!r}, which does not match {unmatched[:3]}")
        return [match.group(1) for match in matches if match is not None]

    def _labels(self, files: list[Path], level: int, class_names: list[str]) -> list[int]:
        outside = [str(path) for path in files if len(path.parts) <= level + 1]
        if outside:
            raise ValueError(f"{self.root}: {outside[:3]} are not in a class folder")
        names = [path.parts[level] for path in files]
        check_class_names(sorted(set(names)), class_names, self.root)
        return [class_names.index(name) for name in names]

    def _splits(self, files: list[Path], table: pd.DataFrame, has_splits: bool) -> list[str]:
        file_splits = [_split_folder(path, self.root) for path in files] if has_splits else None
        if file_splits is None and self.fractions is None:
            raise ValueError(f"{self.root}: no train, val, test folders; give fractions to split")
        return complete_splits(file_splits, table, self.fractions)


def _num_groups(expression: str) -> int:
    try:
        return re.compile(expression).groups
    except re.error as error:
        raise ValueError(f"patient: {expression!r} is no regular expression: {error}") from None


def _split_folder(path: Path, root: Path) -> str:
    folder = path.parts[0].lower()
    if folder not in SPLIT_ALIASES:
        raise ValueError(f"{root / path}: not in one of the folders {sorted(SPLIT_ALIASES)}")
    return SPLIT_ALIASES[folder]
