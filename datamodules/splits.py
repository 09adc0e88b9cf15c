"""Which patient is on which side of a split that the files do not say, or say only in part."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from datamodules.manifest import rank_of, split_of

CUT = ("val", "test")


@dataclass(frozen=True)
class Fractions:
    """A split by patient; splits that the files name stay, what they lack is cut from train.

    A patient's side is a function of its name and the seed alone, so that it stays when others
    come and go. Stratified, it depends on who else is there.

    Args:
        val: Share of the patients that validation gets where the files name no such split.
        test: Share of the patients that test gets where the files name no such split.
        seed: Another seed, another split.
        stratified: Whether every class keeps its share on each side, as far as whole patients
            allow.
    """

    val: float = 0.15
    test: float = 0.15
    seed: int = 0
    stratified: bool = False

    def split(
        self, patients: pd.Series, labels: list[int], said: list[str] | None = None
    ) -> list[str]:
        """One split a row; rows of one patient that the files do not part get the same."""
        named = said or ["train"] * len(patients)
        asked = {"val": self.val, "test": self.test}
        shares = {split: 0.0 if split in named else share for split, share in asked.items()}
        if set(CUT) <= set(named):
            raise ValueError(f"fractions: the files name {sorted(set(named))}; nothing is to cut")
        free = np.asarray(named) == "train"
        sides = self._sides(patients[free], np.asarray(labels)[free], **shares)
        return [sides[p] if f else s for p, f, s in zip(patients, free, named, strict=True)]

    def _sides(
        self, patients: pd.Series, labels: np.ndarray, val: float, test: float
    ) -> dict[str, str]:
        alone = {patient: split_of(patient, val, test, self.seed) for patient in patients.unique()}
        return self._fair(patients, labels, val, test) if self.stratified else alone

    def _fair(
        self, patients: pd.Series, labels: np.ndarray, val: float, test: float
    ) -> dict[str, str]:
        """Patients with rare classes first, each to the side that lacks most of what it has."""
        counts = pd.crosstab(patients.to_numpy(), labels)
        own = counts.to_numpy() / counts.to_numpy().sum(axis=0)
        ties = [rank_of(str(name), self.seed) for name in counts.index]
        shares = np.array([1 - val - test, val, test])
        lacking = np.repeat(shares[:, None], own.shape[1], axis=1)
        sides = {}
        for k in sorted(range(len(own)), key=lambda k: (-own[k].max(), ties[k])):
            wanted = np.where(shares > 0, (lacking * own[k]).sum(axis=1), -np.inf)
            side = int(wanted.argmax())
            lacking[side] -= own[k]
            sides[str(counts.index[k])] = ("train", *CUT)[side]
        return sides
