"""Datasets listed in tables, and generated images, whose table is written with them."""

from pathlib import Path

import pandas as pd

from datamodules.manifest import COLUMNS, SPLIT_ALIASES, Manifest, read_table
from datamodules.phantoms.generate import PhantomSpec, write_dataset
from datamodules.sources.folders import UNKNOWN_PATIENTS, Source, check_class_names
from datamodules.splits import SplitFractions


class Table(Source):
    """CSV or Parquet files with one row per image, such as ``path,label,split,patient``.

    Args:
        files: Path of the table, or of several tables that are concatenated.
        patient: Column of the patient ID, or several columns that identify a patient together;
            null if patients are unknown, with a note in every report.
        root: Folder of the relative paths in the table; null means the folder of the table.
        path: Column of the image path.
        label: Column of the class, by name or number; null if labels are unknown.
        split: Column of the split (train, val, test, predict); null if there is none.
        study: Column of the study (an imaging exam); null means one study per patient.
        attributes: Further columns for the manifest; null means all.
        fractions: Fractions of patients for val and test if the split column lacks them.
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
        fractions: SplitFractions | None = None,
    ) -> None:
        self.files = [Path(name) for name in ([files] if isinstance(files, str) else files)]
        self.root = Path(root) if root is not None else self.files[0].parent
        self.path, self.columns = path, {"path": path, "label": label, "split": split}
        self.patient = [patient] if isinstance(patient, str) else patient
        self.study, self.attributes, self.fractions = study, attributes, fractions

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row per row of the files; its id is the path as it is written in the table."""
        raw = pd.concat([read_table(path) for path in self.files], ignore_index=True)
        required = [*self.columns.values(), *(self.patient or []), self.study]
        names = [*filter(None, required), *(self.attributes or [])]
        if missing := [name for name in names if name not in raw.columns]:
            raise ValueError(f"{self.files[0]}: no columns {missing}; it has {list(raw.columns)}")
        raw, label_notes = self._drop_unlabeled(raw)
        paths = raw[self.path]
        table = pd.DataFrame({"id": [Path(path).as_posix() for path in paths]})
        table["path"] = [str(self.root / path) for path in paths]
        table["label"] = self._labels(raw, class_names)
        table["patient"], patient_notes = self._patients(raw, table["id"])
        table["split"] = self._splits(raw, table)
        table["study"] = raw[self.study].astype(str) if self.study else table["patient"]
        return Manifest(
            table.join(self._attributes(raw)), class_names, (*label_notes, *patient_notes)
        )

    def _drop_unlabeled(self, raw: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """Rows with a label, without white space around it, and notes on what was changed."""
        column = self.columns["label"]
        if column is None:
            return raw, ()
        labels = raw[column].astype(object).where(raw[column].notna(), "").astype(str)
        stripped, split = labels.str.strip(), self.columns["split"]
        num_stripped = int((stripped != labels).sum())
        is_usable = stripped != ""
        if split is not None:  # the split predict needs no label
            is_usable |= raw[split].astype(str) == "predict"
        num_dropped = int((~is_usable).sum())
        white_space = f"{num_stripped} labels have white space around them, which is removed"
        unlabeled = f"{num_dropped} images have no label and are left out"
        if not is_usable.any():
            raise ValueError(f"{self.files[0]}: no row has a label in the column {column!r}")
        raw = raw.assign(**{column: stripped})[is_usable].reset_index(drop=True)
        return raw, (white_space,) * (num_stripped > 0) + (unlabeled,) * (num_dropped > 0)

    def _patients(self, raw: pd.DataFrame, ids: pd.Series) -> tuple[pd.Series, tuple[str, ...]]:
        """The patient of each row; a row without one is its own patient."""
        if self.patient is None:
            return ids, (UNKNOWN_PATIENTS,)
        parts = raw[self.patient].fillna("").astype(str)
        patients = parts.agg("/".join, axis=1).where((parts != "").all(axis=1), "")
        count = int((patients == "").sum())
        note = f"{count} images have no patient; each is treated as a patient of its own"
        return patients.where(patients != "", ids), (note,) * (count > 0)

    def _labels(self, raw: pd.DataFrame, class_names: list[str]) -> list[int]:
        column = self.columns["label"]
        if column is None:
            return [-1] * len(raw)
        values = raw[column].astype(str)
        present = set(values) - {""}
        if present <= {str(number) for number in range(len(class_names))} - set(class_names):
            return [int(value or -1) for value in values]
        if not present <= set(class_names):
            check_class_names(sorted(present), class_names, self.files[0])
        return [class_names.index(value) if value else -1 for value in values]

    def _splits(self, raw: pd.DataFrame, table: pd.DataFrame) -> list[str]:
        column, splits = self.columns["split"], None
        if column is not None:
            splits = [SPLIT_ALIASES.get(value.lower(), value) for value in raw[column].astype(str)]
        elif self.columns["label"] is None:
            return ["predict"] * len(raw)
        if self.fractions is not None:
            return self.fractions.assign(table["patient"], table["label"].tolist(), splits)
        if splits is None:
            message = "no split column; give fractions to split by patient"
            raise ValueError(f"{self.files[0]}: {message}")
        return splits

    def _attributes(self, raw: pd.DataFrame) -> pd.DataFrame:
        single = self.patient if self.patient and len(self.patient) == 1 else []
        used = {*self.columns.values(), *single, self.study, *COLUMNS}
        names = self.attributes if self.attributes is not None else list(raw.columns)
        return raw[[name for name in names if name not in used]]


class Phantoms(Source):
    """Generated images with known lesions and their boxes, written to disk on first use.

    Args:
        kind: What the images show: fracture, retina, limbs, chest, pneumonia, cardiomegaly,
            osteoporosis, osteoarthritis or limb_abnormality.
        num_patients: Number of patients.
        images_per_patient: Mean number of images per patient.
        image_size: Height and width of the images in pixels.
        seed: Seed of the images and of the split.
        root: Folder to which the images are written.
        val: Fraction of the patients for validation.
        test: Fraction of the patients for test.
    """

    def __init__(
        self,
        kind: str = "fracture",
        num_patients: int = 300,
        images_per_patient: int = 3,
        image_size: int = 64,
        seed: int = 0,
        root: str = "data/phantoms",
        val: float = 0.15,
        test: float = 0.15,
    ) -> None:
        self.spec = PhantomSpec(kind, num_patients, images_per_patient, image_size, seed)
        self.root, self.fractions = Path(root), SplitFractions(val, test, seed)

    def prepare(self) -> None:
        """Writes the images unless their folder exists."""
        write_dataset(self.spec, self.root)

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row per image, with the column ``box`` and the attributes of its kind."""
        table = write_dataset(self.spec, self.root) / "manifest.csv"
        source = Table(str(table), "patient", split=None, study="study", fractions=self.fractions)
        return source.manifest(class_names)
