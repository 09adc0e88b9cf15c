"""Datasets in folders: one folder per class, and MURA in its original layout."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import pandas as pd

from datamodules.manifest import SPLIT_ALIASES, Manifest
from datamodules.sources.files import complete_patients, has_split_folders, scan_folder
from datamodules.splits import SplitFractions, assign_split

_MURA_PATH = re.compile(
    r"(train|valid)/XR_([A-Z]+)/(patient\d+)/(study\d+)_(negative|positive)/[^/]+"
)


class Source(ABC):
    """A dataset: lists its samples with label, split and patient."""

    def prepare(self) -> None:
        """Creates or downloads what is missing; called once, in one process."""
        return

    @abstractmethod
    def manifest(self, class_names: list[str]) -> Manifest:
        """All samples; raises ValueError if the class names do not match the files."""


def check_class_names(names_in_files: list[str], class_names: list[str], where: Path) -> None:
    """Raises ValueError if the class names are not those in the files."""
    if sorted(class_names) != names_in_files:
        raise ValueError(f"{where}: classes in the files are {names_in_files}, not {class_names}")


class Folders(Source):
    """One folder per class: ``ROOT/train/normal/p12_1.png``, or ``ROOT/normal/p12_1.png``.

    Split folders are named train, val (valid, validation) and test; without them, the splits are
    made by patient from ``fractions``.

    Args:
        root: The folder that contains the split folders or the class folders.
        patient: Regular expression whose first group is the patient in a path below ``root``, such
            as ``(p[0-9]+)_``; null reads the PatientID of DICOM files, and treats every other
            image as a patient of its own, with a note in every report.
        fractions: Fractions of patients for val and test if these folders are missing.
    """

    def __init__(
        self, root: str, patient: str | None, fractions: SplitFractions | None = None
    ) -> None:
        try:
            has_group = patient is None or re.compile(patient).groups > 0
        except re.error as error:
            raise ValueError(f"patient: {patient!r} is no regular expression: {error}") from None
        if not has_group:
            raise ValueError(f"patient: {patient!r} has no group (...) for the patient")
        self.root, self.patient, self.fractions = Path(root), patient, fractions

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row per image file; its id is the path below ``root``."""
        files, notes = scan_folder(self.root)
        has_splits = has_split_folders(files)
        labels = self._labels(files, int(has_splits), class_names)
        table, patient_notes = self.patient_table(files)
        table = table.assign(label=labels)
        splits = [self._split(path) for path in files] if has_splits else None
        if self.fractions is not None:
            splits = self.fractions.assign(table, splits)
        if splits is None:
            raise ValueError(f"{self.root}: no train, val, test folders; give fractions to split")
        return Manifest(table.assign(split=splits), class_names, (*notes, *patient_notes))

    def patient_table(self, files: list[Path]) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """Table of id, path, patient, study and DICOM attributes of each file, and notes."""
        ids = pd.Series([path.as_posix() for path in files])
        table = pd.DataFrame({"id": ids, "path": [str(self.root / path) for path in files]})
        table = table.assign(patient="", study="")
        if self.patient is not None:
            patients = ids.str.extract(self.patient).iloc[:, 0]
            if unmatched := ids[patients.isna()].tolist():
                message = f"which does not match {unmatched[:3]}"
                raise ValueError(f"patient is {self.patient!r}, {message}")
            table = table.assign(patient=patients)
        return complete_patients(table)

    def _labels(self, files: list[Path], level: int, class_names: list[str]) -> list[int]:
        """The label of each file, by the name of its path's folder at this level."""
        if outside := [str(path) for path in files if len(path.parts) <= level + 1]:
            raise ValueError(f"{self.root}: {outside[:3]} are not in a class folder")
        names = [path.parts[level] for path in files]
        check_class_names(sorted(set(names)), class_names, self.root)
        return [class_names.index(name) for name in names]

    def _split(self, path: Path) -> str:
        """The split of a file, by its path's first folder."""
        folder = path.parts[0].lower()
        if folder not in SPLIT_ALIASES:
            folders = sorted(SPLIT_ALIASES)
            raise ValueError(f"{self.root / path}: not in one of the folders {folders}")
        return SPLIT_ALIASES[folder]


class Mura(Source):
    """Stanford's MURA: ``ROOT/train/XR_ELBOW/patient00011/study1_negative/image1.png``.

    40,561 radiographs in 14,863 studies of 12,173 patients, seven body parts; each study is
    labeled negative or positive (abnormal). Rajpurkar et al. 2018, arXiv:1712.06957; available on
    request from Stanford's AIMI center. Its test set is hidden: ``valid`` is its public part.

    Args:
        root: The folder that contains ``train`` and ``valid``.
        files: MURA's lists of image paths, read instead of the folders; null reads the folders.
        valid_as: The split that ``valid`` becomes; with ``test``, validation is taken from train.
        val: Fraction of the training patients for validation if ``valid_as`` is ``test``.
        seed: Seed of that split.
    """

    def __init__(
        self,
        root: str,
        files: list[str] | None = None,
        valid_as: Literal["val", "test"] = "test",
        val: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.root, self.files, self.valid_as = Path(root), files, valid_as
        self.val, self.seed = val if valid_as == "test" else 0.0, seed

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row per radiograph with ``body_part``; everything is read from the path."""
        if len(class_names) != 2:
            raise ValueError(f"class_names is {class_names}; MURA has two classes, negative first")
        if self.files is None:
            paths = [path.as_posix() for path in scan_folder(self.root)[0]]
        else:
            lines = [line for file in self.files for line in Path(file).read_text().split()]
            paths = [re.sub(r"^MURA-v[\d.]+/", "", line) for line in lines]
        return Manifest(pd.DataFrame(map(self._row, paths)), class_names)

    def _row(self, path: str) -> dict[str, str | int]:
        """The manifest row of an image path below ``root``."""
        match = _MURA_PATH.fullmatch(path)
        if match is None:
            raise ValueError(f"{self.root / path}: not a path in MURA's layout")
        folder, part, patient, study, label = match.groups()
        is_train = folder == "train"
        split = assign_split(patient, self.val, 0.0, self.seed) if is_train else self.valid_as
        return {
            "id": path, "path": str(self.root / path), "label": int(label == "positive"),
            "split": split, "patient": patient, "study": f"{part}/{patient}/{study}",
            "body_part": part.lower(),
        }  # fmt: skip
