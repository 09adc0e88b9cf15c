"""Datasets listed in tables, and generated images, whose table is written with them."""

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd

from datamodules.manifest import (
    COLUMNS,
    FINDING,
    SPLIT_ALIASES,
    SPLITS,
    Manifest,
    cell_text,
    normalize_text,
    read_table,
)
from datamodules.phantoms.generate import NO_FINDING, SEPARATOR, PhantomSpec, write_dataset
from datamodules.sources.files import complete_patients
from datamodules.sources.findings import Findings
from datamodules.sources.folders import Source, check_class_names
from datamodules.splits import SplitFractions

FINDINGS_KIND = "chest_findings"  # of generated images


class Table(Source):
    """CSV or Parquet files with one row per image, such as ``path,label,split,patient``.

    Args:
        files: Path of the table, or of several tables that are concatenated.
        patient: Column of the patient ID, or several columns that identify a patient together;
            null reads the PatientID of DICOM files. An image without one is treated as a patient of
            its own, with a note in every report.
        root: Folder of the relative paths in the table; null means the folder of the table.
        path: Column of the image path.
        label: Column of the class, by name or number; null if labels are unknown.
        split: Column of the split (train, val, test, predict); null if there is none.
        study: Column of the study (an imaging exam); null means the StudyInstanceUID of DICOM
            files, else one study per patient.
        attributes: Further columns for the manifest; null means all.
        fractions: Fractions of patients for val and test if the split column lacks them.
        findings: How the table gives several findings per image; null means one label per image.
            ``label`` is the column of their text, or without a ``separator`` is not used.

    Rows without a path or any known label are left out, with a note in every report.
    """

    def __init__(
        self,
        files: str | list[str],
        patient: str | list[str] | None = None,
        root: str | None = None,
        path: str = "path",
        label: str | None = "label",
        split: str | None = "split",
        study: str | None = None,
        attributes: list[str] | None = None,
        fractions: SplitFractions | None = None,
        findings: Findings | None = None,
    ) -> None:
        if findings is not None and findings.separator is None:
            label = None
        self.findings = findings
        self.files = [Path(name) for name in ([files] if isinstance(files, str) else files)]
        self.root = Path(root) if root is not None else self.files[0].parent
        self.path, self.columns = path, {"path": path, "label": label, "split": split}
        self.patient = [patient] if isinstance(patient, str) else patient
        self.study, self.attributes, self.fractions = study, attributes, fractions

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row per row of the files; its id is the path as it is written in the table."""
        raw = self.read()
        required = [*self.columns.values(), *(self.patient or []), self.study]
        labels = class_names if self.findings and self.findings.separator is None else []
        names = [*filter(None, required), *(self.attributes or []), *labels]
        if missing := [name for name in names if name not in raw.columns]:
            raise ValueError(f"{self.files[0]}: no columns {missing}; it has {list(raw.columns)}")
        raw, notes = self._clean(raw)
        paths = raw[self.path]
        if repeated := paths[paths.duplicated()].tolist():
            message = f"{len(repeated)} rows repeat the path of another row, such as {repeated[:3]}"
            raise ValueError(f"{self.files[0]}: {message}; keep one row per image")
        table = pd.DataFrame({"id": [Path(path).as_posix() for path in paths]})
        table["path"] = [str(self.root / path) for path in paths]
        findings = pd.DataFrame(index=raw.index)
        if self.findings is None:
            table["label"] = self._labels(raw, class_names)
        else:
            table["label"], column = -1, self.columns["label"]
            findings, more = self.findings.read(raw, column, class_names, self.files[0])
            notes += more
        table["patient"] = ""
        if self.patient is not None:
            parts = raw[self.patient]
            joined = parts.agg("/".join, axis=1)
            table["patient"] = joined.where((parts != "").all(axis=1), "")
        table["study"] = raw[self.study] if self.study else ""
        attributes = self._attributes(raw, labels)
        table, patient_notes = complete_patients(table.join(attributes).join(findings))
        if self.attributes is not None:
            table = table[[*COLUMNS[:3], "patient", "study", *attributes, *findings]]
        table = table.assign(split=self._splits(raw, table))
        if self.findings is not None:
            is_unusable = (findings == -1).all(axis=1) & (table["split"] != "predict")
            table = table[~is_unusable]
            if count := int(is_unusable.sum()):
                notes.append(f"{count} images have no known label and are left out")
        return Manifest(table, class_names, (*notes, *patient_notes))

    def read(self) -> pd.DataFrame:
        """The rows of all files as they are."""
        return pd.concat([read_table(path) for path in self.files], ignore_index=True)

    def _clean(self, raw: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """The rows with a path and a label, in columns of normalized text, and notes.

        Rows of the split predict need no label.
        """
        notes, columns = [], self.columns
        patients = [("patient ID", column) for column in self.patient or []]
        for role, column in (*columns.items(), *patients, ("study", self.study)):
            if column is None:
                continue
            cells, present = raw[column], raw[column].notna()
            text = cell_text(cells) if role == "path" else normalize_text(cells)
            raw = raw.assign(**{column: text})
            if count := int((text != cells.astype(str))[present].sum()):
                noun = "studies" if role == "study" else f"{role}s"
                change = "have stray white space or variant characters, which are removed"
                notes.append(f"{count} {noun} {change}")
        for role in ("path", "label"):
            if (column := columns[role]) is None:
                continue
            is_usable = raw[column] != ""
            if role == "label" and columns["split"] is not None:
                is_usable |= raw[columns["split"]] == "predict"
            if not is_usable.any():
                raise ValueError(f"{self.files[0]}: no row has a {role} in the column {column!r}")
            if count := int((~is_usable).sum()):
                notes.append(f"{count} images have no {role} and are left out")
            raw = raw[is_usable].reset_index(drop=True)
        return raw, notes

    def _labels(self, raw: pd.DataFrame, class_names: list[str]) -> list[int]:
        """The label of each row, from class names or numbers in its cell; -1 if it is empty."""
        column = self.columns["label"]
        if column is None:
            return [-1] * len(raw)
        values = raw[column]
        if class_names and not set(values) & set(class_names):  # a column of numbers with gaps
            values = values.str.replace(r"^(\d+)\.0$", r"\1", regex=True)
        present = set(values) - {""}
        if present <= {str(number) for number in range(len(class_names))} - set(class_names):
            return [int(value or -1) for value in values]
        if not present <= set(class_names):
            check_class_names(sorted(present), class_names, self.files[0])
        return [class_names.index(value) if value else -1 for value in values]

    def _splits(self, raw: pd.DataFrame, table: pd.DataFrame) -> list[str]:
        """The split of each row by its cell and ``fractions``; predict if labels are unknown."""
        column = self.columns["split"]
        if column is not None and raw[column].ne("").any():
            given = self._given_splits(raw, column)
            return given if self.fractions is None else self.fractions.assign(table, given)
        if self.columns["label"] is None and self.findings is None:
            return ["predict"] * len(raw)
        if self.fractions is None:
            message = "no split column; give fractions to split by patient"
            raise ValueError(f"{self.files[0]}: {message}")
        return self.fractions.assign(table)

    def _given_splits(self, raw: pd.DataFrame, column: str) -> list[str]:
        """The split that each row gives; ValueError if it is empty or not allowed."""
        values = raw[column]
        if empty := raw[self.path][values == ""].tolist():
            message = f"{len(empty)} rows have no {column!r}, such as {empty[:3]}"
            raise ValueError(f"{self.files[0]}: {message}; fill in or empty the whole column")
        splits = [SPLIT_ALIASES.get(value.lower(), value) for value in values]
        if unknown := sorted(set(splits) - set(SPLITS)):
            message = f"the column {column!r} has the splits {unknown[:5]}; allowed are "
            message += f"{list(SPLITS)}; --split none (in a config null) ignores it"
            raise ValueError(f"{self.files[0]}: {message}")
        return splits

    def _attributes(self, raw: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
        """The columns of ``attributes``, or all, without ``labels`` and those of another use."""
        single = self.patient if self.patient and len(self.patient) == 1 else []
        used = {*self.columns.values(), *single, self.study, *COLUMNS, *labels}
        names = self.attributes if self.attributes is not None else list(raw.columns)
        return raw[[name for name in names if name not in used]]


class Phantoms(Source):
    """Generated images with known lesions and their boxes, written to disk on first use.

    Args:
        kind: What the images show: fracture, retina, limbs, chest, pneumonia, cardiomegaly,
            osteoporosis, osteoarthritis or limb_abnormality; or chest_findings, several at once.
        num_patients: Number of patients.
        images_per_patient: Mean number of images per patient.
        image_size: Height and width of the images in pixels.
        seed: Seed of the images and of the split.
        root: Folder to which the images are written.
        val: Fraction of the patients for validation.
        test: Fraction of the patients for test.
        unknown: Fraction of the training labels of ``chest_findings`` that are made unknown.
        unknown_among: Whether these are drawn from ``all`` labels, or from the ``negative`` ones,
            as if findings were mentioned only if present.
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
        unknown: float = 0.0,
        unknown_among: Literal["all", "negative"] = "all",
    ) -> None:
        self.spec = PhantomSpec(kind, num_patients, images_per_patient, image_size, seed)
        self.findings = Findings(SEPARATOR, NO_FINDING) if kind == FINDINGS_KIND else None
        if unknown and not (self.findings and 0 < unknown < 1):
            raise ValueError(f"unknown is {unknown}; it is from 0 to 1, and for {FINDINGS_KIND}")
        self.unknown, self.unknown_among = unknown, unknown_among
        self.root, self.fractions = Path(root), SplitFractions(val, test, seed)

    def prepare(self) -> None:
        """Writes the images unless their folder exists."""
        write_dataset(self.spec, self.root)

    def manifest(self, class_names: list[str]) -> Manifest:
        """One row per image, with the column ``box`` and the attributes of its kind."""
        table = write_dataset(self.spec, self.root) / "manifest.csv"
        source = Table(str(table), "patient", split=None, study="study", fractions=self.fractions,
                       findings=self.findings)  # fmt: skip
        return self._without_some_labels(source.manifest(class_names))

    def _without_some_labels(self, manifest: Manifest) -> Manifest:
        """The manifest with a fraction of the labels of train unknown; the rows with any label."""
        if not self.unknown:
            return manifest
        labels, is_train = manifest.labels, (manifest.table["split"] == "train").to_numpy()
        may_be_unknown = is_train[:, None] & ((labels == 0) | (self.unknown_among == "all"))
        draws = np.random.default_rng(self.spec.seed).random(labels.shape)
        labels = np.where(may_be_unknown & (draws < self.unknown), -1, labels).astype(np.int8)
        columns = {FINDING + name: labels[:, k] for k, name in enumerate(manifest.class_names)}
        rows = np.flatnonzero((labels >= 0).any(axis=1))
        return replace(manifest, table=manifest.table.assign(**columns).iloc[rows])
