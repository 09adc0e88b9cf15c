"""results.json of a run; prediction tables of runs and members in the folder of an experiment."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

import pandas as pd

from evaluation.files import read_json, write_json
from evaluation.predictions import PredictionTable
from evaluation.stats.estimate import Estimate, Estimates
from evaluation.stats.paired_tests import Difference
from evaluation.subgroups import Subgroup

SCHEMA = "consilium.results"
VERSION = 1
CALIBRATED_MEMBER = "calibrated_member/"  # prefix in `Results.others`; other members are raw


@dataclass(frozen=True)
class Results:
    """Metrics of one model on one split, and of the models that it was compared with."""

    name: str
    split: str
    class_names: list[str]
    metrics: Estimates
    others: dict[str, Estimates] = field(default_factory=dict)  # of members, voters, experiments
    measures: dict[str, float | None] = field(default_factory=dict)  # null if not measured
    # on test, by outcome and by rule for a threshold that was fitted on val
    operating_points: dict[str, dict[str, Estimates]] = field(default_factory=dict)
    subgroups: list[Subgroup] = field(default_factory=list)  # of the attributes of the images
    findings: dict[str, "Results"] = field(default_factory=dict)  # if images have several labels
    gates: dict[str, bool] = field(default_factory=dict)  # whether each gate is passed
    meta: dict[str, Any] = field(default_factory=dict)  # further plain data


def collect_notes(tables: Iterable[PredictionTable]) -> list[str]:
    """Warnings about the data of the tables, without duplicates."""
    return list(dict.fromkeys(str(note) for t in tables for note in t.meta.get("notes", [])))


def write_results(path: Path | str, results: Results) -> None:
    """Writes the results as strict JSON; NaN is an error, a missing value is null with a reason."""
    for part in (results, *results.findings.values()):
        _check_results(part)
    write_json(path, {"schema": SCHEMA, "version": VERSION, **asdict(results)})


def _check_results(results: Results) -> None:
    """ValueError if a number is not finite, or a value is missing without a reason."""
    for group, metrics in {"metrics": results.metrics, **results.others}.items():
        _check_estimates(metrics, f"{group}: ")
    for outcome, rules in results.operating_points.items():
        for rule, metrics in rules.items():
            _check_estimates(metrics, f"{outcome}: {rule}: ")
    for subgroup in results.subgroups:
        _check_estimates(subgroup.metrics, f"{subgroup.name}: ")


def read_results(path: Path | str) -> Results:
    """Reads results.json; another schema or version and unknown keys are errors."""
    content = read_json(path)
    schema = (content.pop("schema", None), content.pop("version", None))
    if schema != (SCHEMA, VERSION):
        raise ValueError(f"{path}: schema and version are {schema}, not {(SCHEMA, VERSION)}")
    try:
        return _parse_results(content)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _parse_results(content: dict[str, Any]) -> Results:
    """The results in the content of a file, or in that of one finding."""
    points = content.get("operating_points", {}).items()
    parsed = {
        "metrics": _read_estimates(content["metrics"]),
        "others": {name: _read_estimates(group) for name, group in content["others"].items()},
        "operating_points": {
            outcome: {rule: _read_estimates(group) for rule, group in rules.items()}
            for outcome, rules in points
        },
        "subgroups": [_read_subgroup(group) for group in content.get("subgroups", [])],
        "findings": {n: _parse_results(part) for n, part in content.get("findings", {}).items()},
    }
    return Results(**{**content, **parsed})


def _read_estimates(group: dict[str, dict[str, Any]]) -> Estimates:
    estimates = {name: Estimate(**content) for name, content in group.items()}
    _check_estimates(estimates)
    return estimates


def _read_subgroup(content: dict[str, Any]) -> Subgroup:
    gaps = {
        name: Difference(**{**gap, "estimate": Estimate(**gap["estimate"])})
        for name, gap in content["gaps"].items()
    }
    return Subgroup(**{**content, "metrics": _read_estimates(content["metrics"]), "gaps": gaps})


def _check_estimates(estimates: Estimates, prefix: str = "") -> None:
    """ValueError if a number is not finite, or a value is missing without a reason."""
    for name, e in estimates.items():
        for key, number in (("value", e.value), ("low", e.low), ("high", e.high)):
            if number is not None and not isfinite(number):
                raise ValueError(f"{prefix}{name}: {key} is {number}; it must be finite or null")
        if e.value is None and not e.reason:
            raise ValueError(f"{prefix}{name}: value is null without a reason")


def voters_folder(ensemble: Path) -> Path:
    """Folder of the voters of an ensemble's folder: `voters-x` for `ensemble-x`, else `voters`."""
    name = ensemble.name.replace("ensemble", "voters", 1)
    return ensemble.with_name(name if name != ensemble.name else "voters")


def member_name(path: Path) -> str:
    """`resnet` for `members/resnet`, `resnet/predictions/val.parquet` and `val/resnet.parquet`."""
    if path.suffix != ".parquet":
        return path.name
    return path.parent.parent.name if path.parent.name == "predictions" else path.stem


def read_tables(
    paths: Sequence[Path], argument: str, split: str = "test"
) -> dict[str, PredictionTable]:
    """Prediction tables by member, from files or from runs on `split`; errors name `argument`."""
    names = [member_name(path) for path in paths]
    if duplicates := [name for name in sorted(names) if names.count(name) > 1]:
        same = f"two paths belong to the member {duplicates[0]!r}"
        raise ValueError(f"{argument}: {same}; copy one of them to a folder of another name")
    tables = {}
    for name, path in zip(names, paths, strict=True):
        file = path if path.suffix == ".parquet" else path / "predictions" / f"{split}.parquet"
        if not file.is_file():
            remedy = f"; run consilium test --run {path} first" * (path != file)
            raise ValueError(f"{argument} {path}: no prediction table {file}{remedy}")
        tables[name] = PredictionTable.read(file)
    return tables


@dataclass(frozen=True)
class ExperimentFolder:
    """The folder of an experiment, for reading; it must have a finished member."""

    path: Path

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError(f"{self.path}: no finished member; run the experiment first")

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
        """Prediction tables of all members on a split, by name."""
        return read_tables([self.run(name) for name in self.members], "member", split)

    def histories(self) -> dict[str, pd.DataFrame]:
        """history.csv of all members, by name."""
        return {name: pd.read_csv(self.run(name) / "history.csv") for name in self.members}
