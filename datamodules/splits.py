"""Which split a sample is in: as its folder or column says, and by patient where they do not."""

from dataclasses import dataclass

import pandas as pd

from datamodules.manifest import split_of

SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Fractions:
    """A split by patient, each patient's side being a function of its name and the seed.

    Args:
        val: Share of the patients that validation gets.
        test: Share of the patients that test gets.
        seed: Another seed, another split.
    """

    val: float = 0.15
    test: float = 0.15
    seed: int = 0

    def split(self, patients: pd.Series) -> list[str]:
        """One split a row; rows of one patient get the same."""
        return [split_of(patient, self.val, self.test, self.seed) for patient in patients]

    def cut(self, splits: list[str], patients: pd.Series) -> list[str]:
        """The splits given, and of train the patients for `val` or `test` where there is none."""
        val, test = (
            0.0 if name in splits else share
            for name, share in (("val", self.val), ("test", self.test))
        )
        sides = (split_of(patient, val, test, self.seed) for patient in patients)
        return [
            side if given == "train" else given for given, side in zip(splits, sides, strict=True)
        ]
