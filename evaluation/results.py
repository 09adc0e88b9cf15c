"""results.json of a run, and the members and ensembles in the folder of an experiment."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.files import read_json, write_json
from evaluation.predictions import PredictionTable
from evaluation.stats.estimate import Estimate

SCHEMA = "consilium.results"
VERSION = 1


@dataclass(frozen=True)
class Results:
    """Metrics of one model on one split, and of the models that it was compared with.

    `metrics` are the model's; `others` are the metrics of members, voters or experiments by name;
    `measures` are numbers such as `latency_ratio_measured`, null if not measured; `gates` are
    True for each gate that passed; `meta` is further plain data.
    """

    name: str
    split: str
    class_names: list[str]
    metrics: dict[str, Estimate]
    others: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    measures: dict[str, float | None] = field(default_factory=dict)
    gates: dict[str, bool] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


def collect_notes(tables: Iterable[PredictionTable]) -> list[str]:
    """Warnings about the data of the tables, without duplicates."""
    return list(dict.fromkeys(str(note) for t in tables for note in t.meta.get("notes", [])))


def write_results(path: Path | str, results: Results) -> None:
    """Writes the results as strict JSON; NaN is an error, a missing value is null with a reason."""
    for group, metrics in {"metrics": results.metrics, **results.others}.items():
        for name, estimate in metrics.items():
            _check_estimate(f"{group}: {name}", estimate)
    write_json(path, {"schema": SCHEMA, "version": VERSION, **asdict(results)})


def read_results(path: Path | str) -> Results:
    """Reads results.json; another schema or version and unknown keys are errors."""
    content = read_json(path)
    schema = (content.pop("schema", None), content.pop("version", None))
    if schema != (SCHEMA, VERSION):
        raise ValueError(f"{path}: schema and version are {schema}, not {(SCHEMA, VERSION)}")
    try:
        content["metrics"] = _estimates(content["metrics"])
        content["others"] = {name: _estimates(group) for name, group in content["others"].items()}
        return Results(**content)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _estimates(group: dict[str, dict[str, Any]]) -> dict[str, Estimate]:
    estimates = {name: Estimate(**content) for name, content in group.items()}
    for name, estimate in estimates.items():
        _check_estimate(name, estimate)
    return estimates


def _check_estimate(name: str, estimate: Estimate) -> None:
    for key in ("value", "low", "high"):
        number = getattr(estimate, key)
        if number is not None and not abs(number) < float("inf"):
            raise ValueError(f"{name}: {key} is {number}; it must be a finite number or null")
    if estimate.value is None and not estimate.reason:
        raise ValueError(f"{name}: value is null without a reason")


def voters_folder(ensemble: Path) -> Path:
    """The folder of an ensemble's fitted voters: `voters-x` next to `ensemble-x`, else `voters`."""
    name = ensemble.name.replace("ensemble", "voters", 1)
    return ensemble.with_name(name if name != ensemble.name else "voters")


@dataclass(frozen=True)
class ExperimentFolder:
    """The folder of an experiment, for reading; it must have a finished member."""

    path: Path

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError(
                f"{self.path}: no finished member in members/; run the experiment first"
            )

    @property
    def members(self) -> list[str]:
        """Names of the members that are finished, in alphabetical order."""
        return sorted(file.parent.name for file in self.path.glob("members/*/results.json"))

    @property
    def ensembles(self) -> list[str]:
        """Names of the ensembles that are finished, in alphabetical order."""
        return sorted(file.parent.name for file in self.path.glob("*/ensemble.json"))

    @property
    def first_run(self) -> Path:
        """The run folder of the first ensemble, or of the first member if there is no ensemble."""
        return self.run([*self.ensembles, *self.members][0])

    def run(self, name: str) -> Path:
        """The run folder of a member or an ensemble."""
        names = [*self.members, *self.ensembles]
        if name not in names:
            raise ValueError(f"{self.path}: no run {name!r}; there are {', '.join(names)}")
        return self.path / name if name in self.ensembles else self.path / "members" / name

    def config_file(self, name: str) -> str:
        """The path of a run's resolved config."""
        return str(self.run(name) / "config.yaml")

    def tables(self, split: str) -> dict[str, PredictionTable]:
        """Prediction tables of all members on a split."""
        files = {name: self.run(name) / "predictions" / f"{split}.parquet" for name in self.members}
        return {name: PredictionTable.read(file) for name, file in files.items()}

    def histories(self) -> dict[str, pd.DataFrame]:
        """Metrics of all members at each epoch."""
        return {name: pd.read_csv(self.run(name) / "history.csv") for name in self.members}
