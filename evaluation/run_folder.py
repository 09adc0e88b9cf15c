"""What a study left in its folder: members, ensembles, tables, learning curves."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from evaluation.predictions import PredictionTable


def voters_of(ensemble: Path) -> Path:
    """Where an ensemble's fitted voters lie: `voters-x` beside `ensemble-x`, else `voters`."""
    name = ensemble.name.replace("ensemble", "voters", 1)
    return ensemble.with_name(name if name != ensemble.name else "voters")


@dataclass(frozen=True)
class ExperimentFolder:
    """A study's folder, read and never written."""

    path: Path

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError(f"{self.path}: no finished member in members/; run the study first")

    @property
    def members(self) -> list[str]:
        """Names of the members that are finished, in alphabetical order."""
        return sorted(file.parent.name for file in self.path.glob("members/*/results.json"))

    @property
    def ensembles(self) -> list[str]:
        """Names of the ensembles that have been convened."""
        return sorted(file.parent.name for file in self.path.glob("*/ensemble.json"))

    @property
    def first(self) -> Path:
        """The run folder of the first ensemble, or of the first member where there is none."""
        return self.run([*self.ensembles, *self.members][0])

    def run(self, name: str) -> Path:
        """The run folder of a member or an ensemble."""
        if name not in [*self.members, *self.ensembles]:
            known = ", ".join([*self.members, *self.ensembles])
            raise ValueError(f"{self.path}: no run {name!r}; there are {known}")
        return self.path / name if name in self.ensembles else self.path / "members" / name

    def config(self, name: str) -> str:
        """The resolved config of a run."""
        return str(self.run(name) / "config.yaml")

    def tables(self, split: str) -> dict[str, PredictionTable]:
        """Every member's prediction table of a split."""
        files = {name: self.run(name) / "predictions" / f"{split}.parquet" for name in self.members}
        return {name: PredictionTable.read(file) for name, file in files.items()}

    def histories(self) -> dict[str, pd.DataFrame]:
        """Every member's figures of each epoch."""
        return {name: pd.read_csv(self.run(name) / "history.csv") for name in self.members}
