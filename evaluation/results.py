"""results.json: the figures of one run in a versioned schema, written and read whole."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from evaluation.files import read_json, write_json
from evaluation.predictions import PredictionTable
from evaluation.stats.estimate import Estimate

SCHEMA = "consilium.results"
VERSION = 1
_NUMBERS = ("value", "low", "high")


@dataclass(frozen=True)
class Results:
    """Figures of one subject on one split, and of what it was compared with.

    `metrics` are the subject's; `others` holds the metrics of members, voters or studies by
    name; `measures` are plain numbers such as `latency_ratio_measured`, null when not measured;
    `gates` say for each name whether it passed; `meta` is any further plain data.
    """

    name: str
    split: str
    class_names: list[str]
    metrics: dict[str, Estimate]
    others: dict[str, dict[str, Estimate]] = field(default_factory=dict)
    measures: dict[str, float | None] = field(default_factory=dict)
    gates: dict[str, bool] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)


def notes_of(tables: Iterable[PredictionTable]) -> list[str]:
    """What the data behind the tables warns of, each warning once."""
    return list(dict.fromkeys(str(note) for t in tables for note in t.meta.get("notes", [])))


def write_results(path: Path | str, results: Results) -> None:
    """Writes the results as strict JSON; a NaN is refused, null with a reason is the way."""
    for where, figures in {"metrics": results.metrics, **results.others}.items():
        for name, figure in figures.items():
            _check(f"{where}: {name}", figure)
    write_json(path, {"schema": SCHEMA, "version": VERSION, **asdict(results)})


def read_results(path: Path | str) -> Results:
    """Reads what `write_results` wrote; another schema, version or key is refused by name."""
    data = read_json(path)
    found = (data.pop("schema", None), data.pop("version", None))
    if found != (SCHEMA, VERSION):
        raise ValueError(f"{path}: schema and version {found}, not {(SCHEMA, VERSION)}")
    try:
        data["metrics"] = _figures(data["metrics"])
        data["others"] = {name: _figures(group) for name, group in data["others"].items()}
        return Results(**data)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: {error}") from None


def _figures(group: dict[str, dict[str, Any]]) -> dict[str, Estimate]:
    figures = {name: Estimate(**plain) for name, plain in group.items()}
    for name, figure in figures.items():
        _check(name, figure)
    return figures


def _check(name: str, figure: Estimate) -> None:
    for part in _NUMBERS:
        number = getattr(figure, part)
        if number is not None and not abs(number) < float("inf"):
            raise ValueError(f"{name}: {part} is {number}; a figure is a finite number or null")
    if figure.value is None and not figure.reason:
        raise ValueError(f"{name}: value is null and no reason is given")
