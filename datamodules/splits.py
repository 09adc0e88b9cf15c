"""Splits by patient and copies: fractions for missing splits, and cross-validation."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd

from datamodules.manifest import Manifest, labels_of, one_hot_labels, read_table

DERIVED_SPLITS = ("val", "test")  # can be cut from train


@dataclass(frozen=True)
class SplitFractions:
    """A split by patient; splits in the files stay, missing ones are taken from train.

    The split of a patient depends on its name and the seed only; if stratified, on all patients.
    Patients that are connected by copies of one image get the same split, as if they were one.

    Args:
        val: Fraction of the patients for validation, if the files have no such split.
        test: Fraction of the patients for test, if the files have no such split.
        seed: Seed of the split.
        stratified: Whether every class or finding has the same fractions, as far as whole patients
            allow.
        copies: A CSV with the columns ``id`` and ``group`` of images that are copies of each
            other, such as the copies.csv of ``consilium audit``.
    """

    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    stratified: bool = False
    copies: str | None = None

    def assign(self, table: pd.DataFrame, file_splits: list[str] | None = None) -> list[str]:
        """One split per row of a table with ``id``, ``patient`` and ``label``.

        Rows keep their ``file_splits``, but val and test, if missing there, are taken from train.
        """
        patients = connect_patients(table, self.copies)
        given = file_splits or ["train"] * len(table)
        val, test = 0.0 if "val" in given else self.val, 0.0 if "test" in given else self.test
        if set(DERIVED_SPLITS) <= set(given):
            message = f"the files already have the splits {sorted(set(given))}; remove them"
            raise ValueError(f"fractions: {message}")
        in_train = np.asarray(given) == "train"
        train = patients[in_train]
        if self.stratified:
            labels = labels_of(table)[in_train]
            assigned = self._split_stratified(train, labels, val, test)
        else:
            assigned = {name: assign_split(name, val, test, self.seed) for name in set(train)}
        return [assigned[p] if s == "train" else s for p, s in zip(patients, given, strict=True)]

    def _split_stratified(
        self, patients: pd.Series, labels: np.ndarray, val: float, test: float
    ) -> dict[str, str]:
        """The split by patient; those with rare classes or findings are assigned first.

        Each patient goes to the split that still lacks most of the patient's classes.
        """
        one_hot = pd.DataFrame(one_hot_labels(labels, int(labels.max()) + 1).astype(int))
        if labels.ndim == 2:
            one_hot["none"] = (labels != 1).all(axis=1).astype(int)
        counts = one_hot.loc[:, one_hot.any()].groupby(patients.to_numpy()).sum()
        class_ratios = (counts / counts.sum()).to_numpy()
        tie_breaks = [hash_64(f"{self.seed}/{name}") / 2**64 for name in counts.index]
        fractions = np.array([1 - val - test, val, test])
        missing = np.repeat(fractions[:, None], class_ratios.shape[1], axis=1)
        splits = {}
        for k in np.lexsort([tie_breaks, -class_ratios.max(axis=1)]):
            need = np.where(fractions > 0, (missing * class_ratios[k]).sum(axis=1), -np.inf)
            best = int(need.argmax())
            missing[best] -= class_ratios[k]
            splits[str(counts.index[k])] = ("train", *DERIVED_SPLITS)[best]
        return splits


@dataclass(frozen=True)
class Fold:
    """One fold of a cross-validation by patient: every patient is in the test split once.

    Fold ``index`` is the test split, the next fold is val, all others are train; the split
    ``predict`` stays. The fold of a patient depends on its name and the seed only, and patients
    that are connected by copies of one image get the same fold.

    Args:
        index: The fold that is the test split, from 0.
        num_folds: Number of folds, at least 3; 0 uses the splits of the source.
        seed: Seed of the assignment of patients to folds.
        copies: A CSV as of ``SplitFractions``.
    """

    index: int = 0
    num_folds: int = 0
    seed: int = 0
    copies: str | None = None

    def __post_init__(self) -> None:
        n = self.num_folds
        if n in (1, 2) or n < 0:
            raise ValueError(f"fold.num_folds is {n}; allowed are 0 for none, and 3 or more")
        if not 0 <= self.index < max(1, n):
            raise ValueError(f"fold.index is {self.index}; allowed are 0 to {max(0, n - 1)}")

    def apply(self, manifest: Manifest) -> Manifest:
        """The manifest with the splits of this fold; unchanged if ``num_folds`` is 0."""
        n = self.num_folds
        if not n:
            return manifest
        table, names = manifest.table, {self.index: "test", (self.index + 1) % n: "val"}
        folds = connect_patients(table, self.copies).map(lambda p: fold_of_patient(p, n, self.seed))
        splits = folds.map(lambda fold: names.get(fold, "train"))
        splits = splits.where(table["split"] != "predict", "predict")
        return replace(manifest, table=table.assign(split=splits))


def connect_patients(table: pd.DataFrame, copies: str | None) -> pd.Series:
    """The patient of each row, with one name for patients that have copies of one image."""
    patients = table["patient"]
    if copies is None:
        return patients
    groups, copy_table = Groups(len(table)), read_table(Path(copies))
    if missing := {"id", "group"} - set(copy_table):
        raise ValueError(f"copies: {copies} has no columns {sorted(missing)}")
    if unknown := sorted(set(copy_table["id"]) - set(table["id"])):
        message = f"{len(unknown)} ids that are not in the data: {unknown[:3]}"
        raise ValueError(f"copies: {copies} has {message}")
    of_copy = table["id"].map(dict(zip(copy_table["id"], copy_table["group"], strict=True)))
    for keys in (patients, of_copy.dropna()):
        for rows in table.groupby(keys).indices.values():
            for row in rows[1:]:
                groups.connect(int(rows[0]), int(row))
    return patients.groupby(groups.labels()).transform("min")


def fold_of_patient(patient: str, num_folds: int, seed: int = 0) -> int:
    """The fold of a patient, 0 to ``num_folds - 1``, by its name and the seed only."""
    return hash_64(f"fold/{seed}/{patient}") * num_folds >> 64


def assign_split(patient: str, val: float, test: float, seed: int = 0) -> str:
    """train, val or test for a patient, by its name and the seed only."""
    if val < 0 or test < 0 or val + test > 1:
        raise ValueError(f"val is {val} and test is {test}; both from 0, their sum at most 1")
    u = hash_64(f"{seed}/{patient}") / 2**64
    return "test" if u < test else "val" if u < test + val else "train"


def hash_64(text: str) -> int:
    """A number from 0 to 2**64 - 1 that depends on the text only."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


class Groups:
    """Rows that belong together (union-find); at first each row is its own group."""

    def __init__(self, count: int) -> None:
        self._parents = np.arange(count)

    def find(self, row: int) -> int:
        """The lowest row number in the group of a row."""
        while (parent := self._parents[row]) != row:
            self._parents[row] = self._parents[parent]  # so that the next search is shorter
            row = int(parent)
        return row

    def connect(self, first: int, second: int) -> None:
        """Joins the groups of two rows."""
        low, high = sorted((self.find(first), self.find(second)))
        self._parents[high] = low

    def is_connected(self, first: int, second: int) -> bool:
        """Whether two rows are in the same group."""
        return self.find(first) == self.find(second)

    def labels(self) -> np.ndarray:
        """(n,) the lowest row number in the group of each row."""
        return np.array([self.find(row) for row in range(len(self._parents))], dtype=int)

    def sizes(self) -> np.ndarray:
        """(n,) number of rows in the group of each row."""
        labels = self.labels()
        return np.asarray(np.bincount(labels)[labels])
