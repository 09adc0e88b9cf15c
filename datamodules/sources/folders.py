"""Pictures in a folder for each class."""

import re
from pathlib import Path

import pandas as pd

from datamodules.manifest import Manifest
from datamodules.sources.source import (
    NO_PATIENTS,
    SPLIT_FOLDERS,
    Source,
    check_names,
    completed,
    picture_files,
)
from datamodules.splits import Fractions


class Folders(Source):
    """A folder for each class, in ``train``, ``val``, ``test`` folders or in none.

    Args:
        root: The folder that holds the split folders or the class folders.
        patient: A regular expression whose first group, searched in the path below ``root``, is
            the patient; null when the files do not say it, which every report will then mention.
        fractions: How to split by patient when there are no split folders, or not all three.
    """

    def __init__(self, root: str, patient: str | None, fractions: Fractions | None = None) -> None:
        if patient is not None and not _groups(patient):
            raise ValueError(f"patient: {patient!r} has no group (...) that is the patient")
        self.root, self.patient, self.fractions = Path(root), patient, fractions

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row a picture file; its id is the path below ``root``."""
        files = picture_files(self.root)
        has_splits = any(path.parts[0].lower() in SPLIT_FOLDERS for path in files)
        table = pd.DataFrame({"id": [path.as_posix() for path in files]})
        table["path"] = [str(self.root / path) for path in files]
        table["label"] = self._labels(files, int(has_splits), class_names)
        table["patient"] = self.patients(table["id"])
        table["split"] = self._splits(files, table, has_splits)
        table["study"] = table["patient"]
        notes = () if self.patient else (NO_PATIENTS,)
        return Manifest(table, class_names, notes)

    def _labels(self, files: list[Path], level: int, class_names: list[str]) -> list[int]:
        loose = [str(path) for path in files if len(path.parts) <= level + 1]
        if loose:
            raise ValueError(f"{self.root}: {loose[:3]} lie in no class folder")
        names = [path.parts[level] for path in files]
        check_names(sorted(set(names)), class_names, self.root)
        return [class_names.index(name) for name in names]

    def patients(self, ids: pd.Series) -> list[str]:
        """The patient of each picture; where the files do not say it, each is one of its own."""
        if self.patient is None:
            return ids.tolist()
        found = [re.search(self.patient, name) for name in ids]
        lost = [name for name, match in zip(ids, found, strict=True) if match is None]
        if lost:
            raise ValueError(f"patient is {self.patient!r}, which does not match {lost[:3]}")
        return [match.group(1) for match in found if match is not None]

    def _splits(self, files: list[Path], table: pd.DataFrame, has_splits: bool) -> list[str]:
        said = [_split_folder(path, self.root) for path in files] if has_splits else None
        if said is None and self.fractions is None:
            raise ValueError(f"{self.root}: no train, val, test folders; give fractions to split")
        return completed(said, table, self.fractions)


def _groups(expression: str) -> int:
    try:
        return re.compile(expression).groups
    except re.error as error:
        raise ValueError(f"patient: {expression!r} is no regular expression: {error}") from None


def _split_folder(path: Path, root: Path) -> str:
    folder = path.parts[0].lower()
    if folder not in SPLIT_FOLDERS:
        raise ValueError(f"{root / path}: not in one of the folders {sorted(SPLIT_FOLDERS)}")
    return SPLIT_FOLDERS[folder]
