"""Pictures that tables list."""

from pathlib import Path

import pandas as pd

from datamodules.manifest import COLUMNS, Manifest
from datamodules.sources.source import (
    NO_PATIENTS,
    SPLIT_FOLDERS,
    Source,
    check_names,
    completed,
)
from datamodules.splits import Fractions
from datamodules.tables import read_table


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
        raw, untold = self._labeled(raw)
        table = pd.DataFrame({"id": [Path(p).as_posix() for p in raw[given["path"]]]})
        table["path"] = [str(self.root / name) for name in raw[given["path"]]]
        table["label"] = self._labels(raw, class_names)
        table["patient"], notes = self._patients(raw, table["id"])
        table["split"] = self._splits(raw, table)
        table["study"] = raw[self.study].astype(str) if self.study else table["patient"]
        return Manifest(table.join(self._attributes(raw)), class_names, (*untold, *notes))

    def _labeled(self, raw: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
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
            check_names(sorted(told), class_names, self.files[0])
        return [class_names.index(value) if value else -1 for value in values]

    def _splits(self, raw: pd.DataFrame, table: pd.DataFrame) -> list[str]:
        column = self.columns["split"]
        if column is not None:
            said = [SPLIT_FOLDERS.get(value.lower(), value) for value in raw[column].astype(str)]
            return completed(said, table, self.fractions)
        if self.columns["label"] is None:
            return ["predict"] * len(raw)
        if self.fractions is None:
            raise ValueError(
                f"{self.files[0]}: no split column; give fractions to split by patient"
            )
        return completed(None, table, self.fractions)

    def _attributes(self, raw: pd.DataFrame) -> pd.DataFrame:
        alone = self.patient if self.patient and len(self.patient) == 1 else []
        used = {*self.columns.values(), *alone, self.study, *COLUMNS}
        kept = self.attributes if self.attributes is not None else list(raw.columns)
        return raw[[name for name in kept if name not in used]]
