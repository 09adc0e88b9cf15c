"""The table of samples (image, label, split, patient), its checks, and the reading of tables."""

import csv
import hashlib
import json
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pandas as pd

SPLITS = ("train", "val", "test", "predict")
SPLIT_ALIASES = {  # names of splits in folders and tables, in lower case
    "train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
COLUMNS = ("id", "path", "label", "split", "patient", "study")
FINDING = "finding/"  # begins the name of a column with the labels of one of several findings
DELIMITERS = (",", ";", "\t")  # the first is used if the header contains none of them


@dataclass(frozen=True, eq=False)
class Manifest:
    """A checked table of samples; the row number of a sample is its ``index`` in a batch.

    If images have several labels, one for each finding, the table has a column ``finding/<class>``
    for each class, with 1, 0, or -1 if unknown, and ``label`` is -1.
    """

    table: pd.DataFrame  # one row per sample with ``COLUMNS``; further columns are attributes
    class_names: list[str]  # in the order of the labels
    notes: tuple[str, ...] = ()  # warnings for every report, such as unknown patients

    def __post_init__(self) -> None:
        names = self.class_names
        if not names or len(set(names)) < len(names):
            raise ValueError(f"class_names is {names}; it must name each class once")
        if missing := [name for name in COLUMNS if name not in self.table.columns]:
            raise ValueError(f"the manifest lacks the columns {missing}; it needs {list(COLUMNS)}")
        if self.table[list(COLUMNS)].isna().to_numpy().any():
            raise ValueError(f"the manifest has empty cells in one of {list(COLUMNS)}")
        dtypes = dict.fromkeys(COLUMNS, str) | {"label": "int64"}
        table = self.table.reset_index(drop=True).astype(dtypes)
        object.__setattr__(self, "table", table)
        if table.empty:
            raise ValueError("the manifest is empty; it needs one row per sample")
        if copies := table["id"][table["id"].duplicated()].tolist():
            raise ValueError(
                f"{len(copies)} ids occur more than once in the manifest: {copies[:3]}"
            )
        if unknown := sorted(set(table["split"]) - set(SPLITS)):
            raise ValueError(f"the manifest has the splits {unknown}; allowed are {list(SPLITS)}")
        if wrong := sorted(set(table["label"]) - set(range(-1, len(names)))):
            allowed = f"0 to {len(names) - 1}, -1 if unknown"
            raise ValueError(f"the manifest has the labels {wrong}; allowed are {allowed}")
        is_unlabeled = (table["label"] == -1) & (table["split"] != "predict")
        if self.is_multi_label:
            is_unlabeled &= self._check_findings()
        if unlabeled := table["id"][is_unlabeled].tolist():
            reason = "only the split 'predict' may lack labels"
            raise ValueError(f"no label for {unlabeled[:3]}; {reason}")

    def _check_findings(self) -> np.ndarray:
        """Whether each row (n,) has no known finding; ValueError if a label column is invalid."""
        expected = [FINDING + name for name in self.class_names]
        if (columns := finding_columns(self.table)) != expected:
            raise ValueError(f"the manifest has the labels {columns}, not {expected}")
        if not (np.isin(self.labels, (-1, 0, 1)).all() and (self.table["label"] == -1).all()):
            allowed = "labels of findings are 1, 0, or -1 if unknown, and 'label' is -1"
            raise ValueError(f"the manifest has other labels than allowed: {allowed}")
        return np.asarray((self.labels == -1).all(axis=1))

    @property
    def is_multi_label(self) -> bool:
        """Whether images have several labels, one for each finding in ``class_names``."""
        return bool(finding_columns(self.table))

    @property
    def labels(self) -> np.ndarray:
        """Labels (n,), or those of several findings (n, K) as int8; -1 if unknown."""
        return labels_of(self.table)

    @property
    def attributes(self) -> list[str]:
        """Names of the columns beyond the six that every manifest has, and those of findings."""
        used = (*COLUMNS, *finding_columns(self.table))
        return [str(name) for name in self.table.columns if name not in used]

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of a split, in the order of the table."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; allowed are {list(SPLITS)}")
        return np.flatnonzero((self.table["split"] == split).to_numpy())

    def drop(self, ids: set[str], reason: str) -> Self:
        """The manifest without these samples, with a note that gives their number and reason."""
        dropped = self.table["id"].isin(ids)
        names = ", ".join(self.table.loc[dropped, "id"].head(20))
        notes = [f"{int(dropped.sum())} files were {reason}: {names}"] * bool(dropped.any())
        return replace(self, table=self.table[~dropped], notes=(*self.notes, *notes))

    def digest(self) -> str:
        """SHA-256 over (id, label, split, patient, findings) of all rows, whatever their order."""
        names = ("id", "label", "split", "patient", *finding_columns(self.table))
        columns = (self.table[name].tolist() for name in names)
        lines = sorted(json.dumps(row) for row in zip(*columns, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def finding_columns(table: pd.DataFrame) -> list[str]:
    """Names of the columns with the labels of findings; none if images have one label."""
    return [str(name) for name in table.columns if str(name).startswith(FINDING)]


def labels_of(table: pd.DataFrame) -> np.ndarray:
    """The labels (n,) of a manifest's rows, or those of several findings (n, K)."""
    if columns := finding_columns(table):
        return table[columns].to_numpy(np.int8)
    return table["label"].to_numpy(np.int64)


def one_hot_labels(labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Whether each row has each class or finding, (n, K), from labels (n,) or (n, K)."""
    is_class = labels == 1 if labels.ndim == 2 else labels[:, None] == np.arange(num_classes)
    return np.asarray(is_class)


def read_table(path: Path) -> pd.DataFrame:
    """A CSV (every cell a str, "NA" and "" too) or Parquet file; ValueError if it is no table."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    try:
        if path.suffix.lower() == ".parquet":
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=str, keep_default_na=False, sep=detect_delimiter(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not a table in UTF-8: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: not a table: {str(error).strip()}") from None


def detect_delimiter(path: Path) -> str:
    """The delimiter that splits the header into most columns."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline(100_000)
    return max(DELIMITERS, key=lambda d: len(next(csv.reader([header], delimiter=d), [])))


def cell_text(column: pd.Series) -> pd.Series:
    """The cells of a column as text without white space around it; missing cells are empty."""
    return column.astype(object).where(column.notna(), "").astype(str).str.strip()


def normalize_text(column: pd.Series) -> pd.Series:
    """``cell_text`` in Unicode's form NFKC, in which most look-alike characters are equal.

    Otherwise a patient ID with a no-break space would be another patient. Case is kept.
    """
    return cell_text(column).map(lambda text: unicodedata.normalize("NFKC", text).strip())
