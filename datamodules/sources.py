"""Where samples come from: class folders, tables, generated pictures; each gives a manifest."""

import re
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Literal

import pandas as pd

from datamodules.manifest import COLUMNS, Manifest, split_of
from datamodules.phantoms import Recipe, written
from datamodules.splits import Fractions
from datamodules.tables import read_table

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


_MURA_PATH = re.compile(
    r"(train|valid)/XR_([A-Z]+)/(patient\d+)/(study\d+)_(negative|positive)/[^/]+"
)


class Source(ABC):
    """Something that can list its samples."""

    def prepare(self) -> None:
        """Makes or fetches what is missing; called once, on one process, before ``manifest``."""
        return

    @abstractmethod
    def manifest(self, class_names: list[str]) -> Manifest:
        """All samples; class names that differ from what the files say are refused."""


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
        _check_names(sorted(set(names)), class_names, self.root)
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
        return _completed(said, table, self.fractions)


class Table(Source):
    """CSV or Parquet files with one row a picture.

    Args:
        files: Path of the table, or of several that are read one after another.
        patient: The column that says the patient, or several that say it together; null when
            there is none, which every report will then mention.
        root: The folder below which the paths lie; the table's own folder when null.
        path: The column with the picture's path.
        label: The column with the class, as a name or as a number; null when labels are unknown.
        split: The column that says the split; null when there is none.
        study: The column that says the study; null takes the patient.
        attributes: Further columns to keep; null keeps all.
        fractions: How to split by patient when there is no split column, or not all three splits.
    """

    def __init__(
        self,
        files: str | list[str],
        patient: str | list[str] | None,
        root: str | None = None,
        path: str = "path",
        label: str | None = "label",
        split: str | None = "split",
        study: str | None = None,
        attributes: list[str] | None = None,
        fractions: Fractions | None = None,
    ) -> None:
        self.files = [Path(name) for name in ([files] if isinstance(files, str) else files)]
        self.root = Path(root) if root is not None else self.files[0].parent
        self.columns = {"path": path, "label": label, "split": split}
        self.patient = [patient] if isinstance(patient, str) else patient
        self.study, self.attributes, self.fractions = study, attributes, fractions

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row a row of the files; its id is the path as the table writes it."""
        raw = pd.concat([read_table(path) for path in self.files], ignore_index=True)
        given = {ours: name for ours, name in self.columns.items() if name is not None}
        more = [*(self.patient or []), *([self.study] if self.study else [])]
        self._check_columns(raw, [*given.values(), *more])
        raw, untold = self._labelled(raw)
        table = pd.DataFrame({"id": [Path(p).as_posix() for p in raw[given["path"]]]})
        table["path"] = [str(self.root / name) for name in raw[given["path"]]]
        table["label"] = self._labels(raw, class_names)
        table["patient"], notes = self._patients(raw, table["id"])
        table["split"] = self._splits(raw, table)
        table["study"] = raw[self.study].astype(str) if self.study else table["patient"]
        return Manifest(table.join(self._attributes(raw)), class_names, (*untold, *notes))

    def _labelled(self, raw: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """Labels without white space around them; rows that have none are left out and noted."""
        column = self.columns["label"]
        if column is None:
            return raw, ()
        labels = raw[column].astype(object).where(raw[column].notna(), "").astype(str)
        bare = labels.str.strip()
        spaced, kept = int((bare != labels).sum()), (bare != "") | self._to_predict(raw)
        blank = int((~kept).sum())
        notes = {f"{spaced} labels have white space around them, which is not read": spaced,
                 f"{blank} pictures have no label and are left out": blank}  # fmt: skip
        if not kept.any():
            raise ValueError(f"{self.files[0]}: no row has a label in the column {column!r}")
        raw = raw.assign(**{column: bare})[kept].reset_index(drop=True)
        return raw, tuple(note for note, many in notes.items() if many)

    def _to_predict(self, raw: pd.DataFrame) -> pd.Series:
        """Which rows need no label."""
        column = self.columns["split"]
        return raw[column].astype(str) == "predict" if column else pd.Series(False, raw.index)

    def _patients(self, raw: pd.DataFrame, ids: pd.Series) -> tuple[pd.Series, tuple[str, ...]]:
        """The patient of each row; one that is not told is taken as a patient of its own."""
        if self.patient is None:
            return ids, (NO_PATIENTS,)
        parts = raw[self.patient].fillna("").astype(str)
        named = parts.agg("/".join, axis=1).where((parts != "").all(axis=1), "")
        blank = int((named == "").sum())
        note = f"{blank} pictures name no patient; each is taken as a patient of its own"
        return named.where(named != "", ids), (note,) * (blank > 0)

    def _check_columns(self, raw: pd.DataFrame, wanted: list[str]) -> None:
        missing = [name for name in [*wanted, *(self.attributes or [])] if name not in raw.columns]
        if missing:
            raise ValueError(f"{self.files[0]}: no columns {missing}; it has {list(raw.columns)}")

    def _labels(self, raw: pd.DataFrame, class_names: list[str]) -> list[int]:
        column = self.columns["label"]
        if column is None:
            return [-1] * len(raw)
        values = raw[column].astype(str)
        told = set(values) - {""}
        if told <= {str(number) for number in range(len(class_names))} - set(class_names):
            return [int(value or -1) for value in values]
        if not told <= set(class_names):
            _check_names(sorted(told), class_names, self.files[0])
        return [class_names.index(value) if value else -1 for value in values]

    def _splits(self, raw: pd.DataFrame, table: pd.DataFrame) -> list[str]:
        column = self.columns["split"]
        if column is not None:
            said = [SPLIT_FOLDERS.get(value.lower(), value) for value in raw[column].astype(str)]
            return _completed(said, table, self.fractions)
        if self.columns["label"] is None:
            return ["predict"] * len(raw)
        if self.fractions is None:
            raise ValueError(
                f"{self.files[0]}: no split column; give fractions to split by patient"
            )
        return _completed(None, table, self.fractions)

    def _attributes(self, raw: pd.DataFrame) -> pd.DataFrame:
        alone = self.patient if self.patient and len(self.patient) == 1 else []
        used = {*self.columns.values(), *alone, self.study, *COLUMNS}
        kept = self.attributes if self.attributes is not None else list(raw.columns)
        return raw[[name for name in kept if name not in used]]


class Mura(Source):
    """Stanford's MURA: ``{train,valid}/XR_ELBOW/patient00011/study1_negative/image1.png``.

    40,561 films of 14,863 studies of 12,173 patients, seven body parts, labelled by study as
    negative or positive (abnormal). Rajpurkar and others 2018, arXiv:1712.06957; to be had on
    request from Stanford's AIMI centre. Its own test set is hidden: ``valid`` is its public part.

    Args:
        root: The folder that holds ``train`` and ``valid``.
        files: MURA's lists of image paths, read instead of the tree; null walks the tree.
        valid_as: The split that ``valid`` becomes; with ``test``, validation is cut from train.
        val: Share of the training patients that validation gets when ``valid_as`` is ``test``.
        seed: Another seed, another cut.
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
        """One row a film with ``body_part``; everything is read from the path."""
        if len(class_names) != 2:
            raise ValueError(f"class_names is {class_names}; MURA has two, negative first")
        rows = [self._row(path) for path in self._paths()]
        return Manifest(pd.DataFrame(rows), class_names)

    def _paths(self) -> list[str]:
        if self.files is None:
            return [path.as_posix() for path in picture_files(self.root)]
        lines = [line for file in self.files for line in Path(file).read_text().split()]
        return [re.sub(r"^MURA-v[\d.]+/", "", line) for line in lines]

    def _row(self, path: str) -> dict[str, str | int]:
        found = _MURA_PATH.fullmatch(path)
        if found is None:
            raise ValueError(f"{self.root / path}: not a path as MURA writes them")
        folder, part, patient, study, word = found.groups()
        split = split_of(patient, self.val, 0.0, self.seed) if folder == "train" else self.valid_as
        return {
            "id": path,
            "path": str(self.root / path),
            "label": int(word == "positive"),
            "split": split,
            "patient": patient,
            "study": f"{part}/{patient}/{study}",
            "body_part": part.lower(),
        }


class Phantoms(Source):
    """Generated pictures with known lesions, made on first use; nothing is fetched.

    Args:
        kind: What is drawn: a name of ``phantoms.KINDS``, such as ``fracture`` or ``retina``.
        patients: How many patients there are.
        films: How many pictures a patient has in the mean.
        size: Side of the pictures in pixels.
        seed: Another seed, other pictures.
        root: The folder in which the pictures are kept.
        val: Share of the patients that validation gets.
        test: Share of the patients that test gets.
    """

    def __init__(
        self,
        kind: str = "fracture",
        patients: int = 300,
        films: int = 3,
        size: int = 64,
        seed: int = 0,
        root: str = "data/phantoms",
        val: float = 0.15,
        test: float = 0.15,
    ) -> None:
        self.recipe = Recipe(kind, patients, films, size, seed)
        self.root, self.fractions = Path(root), Fractions(val, test, seed)

    def prepare(self) -> None:
        """Draws the pictures unless the folder is there."""
        written(self.recipe, self.root)

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row a picture, with the column ``box`` and what else its kind says."""
        table = written(self.recipe, self.root) / "manifest.csv"
        source = Table(str(table), "patient", split=None, study="study", fractions=self.fractions)
        return source.manifest(class_names)


def _groups(expression: str) -> int:
    try:
        return re.compile(expression).groups
    except re.error as error:
        raise ValueError(f"patient: {expression!r} is no regular expression: {error}") from None


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


def _completed(
    said: list[str] | None, table: pd.DataFrame, fractions: Fractions | None
) -> list[str]:
    """The splits that the files say, completed from train if that is asked for."""
    if fractions is None:
        return said or []
    return fractions.split(table["patient"], table["label"].tolist(), said)


def _split_folder(path: Path, root: Path) -> str:
    folder = path.parts[0].lower()
    if folder not in SPLIT_FOLDERS:
        raise ValueError(f"{root / path}: not in one of the folders {sorted(SPLIT_FOLDERS)}")
    return SPLIT_FOLDERS[folder]


def _check_names(found: list[str], class_names: list[str], where: Path) -> None:
    if sorted(class_names) != found:
        raise ValueError(f"{where}: the files say {found}, class_names says {class_names}")
