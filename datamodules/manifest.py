"""One table of samples: which picture, which label, which split, whose."""

import hashlib
import json
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import pandas as pd

SPLITS = ("train", "val", "test", "predict")
COLUMNS = ("id", "path", "label", "split", "patient", "study")


@dataclass(frozen=True, eq=False)
class Manifest:
    """A checked table; a row's position in it is the ``index`` of the batch.

    Args:
        table: One row a sample with the columns of ``COLUMNS``; any further column is an attribute.
        class_names: The name of each label, in the order of the labels.
        notes: Warnings that every report must carry, for instance that patients are unknown.
    """

    table: pd.DataFrame
    class_names: list[str]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_class_names(self.class_names)
        missing = [name for name in COLUMNS if name not in self.table.columns]
        if missing:
            raise ValueError(f"the manifest lacks the columns {missing}; it needs {list(COLUMNS)}")
        object.__setattr__(self, "table", _typed(self.table))
        _check_ids(self.table)
        _check_splits(self.table)
        _check_labels(self.table, self.class_names)

    @property
    def attributes(self) -> list[str]:
        """Names of the columns beyond the six that every manifest has."""
        return [str(name) for name in self.table.columns if name not in COLUMNS]

    def rows(self, split: str) -> np.ndarray:
        """Positions of a split's rows, in the order of the table."""
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; allowed are {list(SPLITS)}")
        return np.flatnonzero((self.table["split"] == split).to_numpy())

    def without(self, ids: set[str], why: str) -> Self:
        """The manifest without some samples, with a note that says how many, why and which."""
        lost = self.table["id"].isin(ids)
        names = ", ".join(self.table.loc[lost, "id"].head(20))
        note = f"{int(lost.sum())} files were {why}: {names}" if lost.any() else ""
        return replace(self, table=self.table[~lost], notes=(*self.notes, *filter(None, [note])))

    def digest(self) -> str:
        """Hash of every (id, label, split, patient); the order of the rows does not matter."""
        columns = (self.table[name].tolist() for name in ("id", "label", "split", "patient"))
        lines = sorted(json.dumps(row) for row in zip(*columns, strict=True))
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def split_of(patient: str, val: float, test: float, seed: int = 0) -> str:
    """The split of a patient: a rule that each answers alone, whatever rows come and go."""
    if val < 0 or test < 0 or val + test > 1:
        raise ValueError(f"val is {val} and test is {test}; both from 0, their sum at most 1")
    u = rank_of(patient, seed)
    return "test" if u < test else "val" if u < test + val else "train"


def rank_of(patient: str, seed: int) -> float:
    """A number from 0 up to 1 that only the name and the seed decide."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{patient}".encode()).digest()[:8], "big") / 2**64


def _typed(table: pd.DataFrame) -> pd.DataFrame:
    table = table.reset_index(drop=True)
    text = [name for name in COLUMNS if name != "label"]
    if table[list(COLUMNS)].isna().to_numpy().any():
        raise ValueError(f"the manifest has empty cells in one of {list(COLUMNS)}")
    return table.astype({name: str for name in text} | {"label": "int64"})


def _check_class_names(names: list[str]) -> None:
    if not names or len(set(names)) < len(names):
        raise ValueError(f"class_names is {names}; it must name each class once")


def _check_ids(table: pd.DataFrame) -> None:
    if table.empty:
        raise ValueError("the manifest is empty; it needs one row a sample")
    doubled = table["id"][table["id"].duplicated()].tolist()
    if doubled:
        raise ValueError(f"{len(doubled)} ids stand more than once in the manifest: {doubled[:3]}")


def _check_splits(table: pd.DataFrame) -> None:
    unknown = sorted(set(table["split"]) - set(SPLITS))
    if unknown:
        raise ValueError(f"the manifest has the splits {unknown}; allowed are {list(SPLITS)}")


def _check_labels(table: pd.DataFrame, class_names: list[str]) -> None:
    label, top = table["label"], len(class_names) - 1
    bad = sorted(set(label[(label < -1) | (label > top)].tolist()))
    if bad:
        raise ValueError(
            f"the manifest has the labels {bad}; allowed are 0 to {top}, -1 if unknown"
        )
    untold = table.loc[(label == -1) & (table["split"] != "predict"), "id"].tolist()
    if untold:
        raise ValueError(f"no label for {untold[:3]}; only the split 'predict' may lack labels")
