"""What the runs of a study found, and how that stands beside its gates and claims."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path

from consilium.experiments.config import ENSEMBLE, MEMBERS, ExperimentConfig
from consilium.experiments.gates import Claim
from consilium.experiments.plan import plan, rounds
from evaluation.grouping import by_level
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.results import Results, read_results
from evaluation.stats.estimate import Estimate

Runs = dict[str, Results]


def read_runs(study: ExperimentConfig, folder: Path) -> Runs:
    """Results of every ensemble (first) and member that is done, by the run's name."""
    done = {run.name: run.folder for run in plan(study, folder) if run.done()}
    names = [*subjects(study, ENSEMBLE), *subjects(study, MEMBERS)]
    found = {name: _results(study, done[name]) for name in names if name in done}
    if not found:
        raise ValueError(f"{folder}: no run of the study {study.name} is done")
    return found


def _results(study: ExperimentConfig, folder: Path) -> Results:
    """The run's own results and, named `study/accuracy`, those of the study's level."""
    found = read_results(folder / "results.json")
    if study.level == "image":
        return found
    whole = compute_metrics(by_level(table_of(folder), study.level))
    pooled = {f"{study.level}/{name}": figure for name, figure in whole.items()}
    return replace(found, metrics=found.metrics | pooled)


def table_of(folder: Path, split: str = "test") -> PredictionTable:
    """The prediction table of a run folder."""
    return PredictionTable.read(folder / "predictions" / f"{split}.parquet")


def subjects(study: ExperimentConfig, who: str) -> list[str]:
    """Names of the runs that are meant by ensemble, members, or the name of one, in all rounds."""
    groups: Mapping[str, list[str]] = {
        ENSEMBLE: list(study.ensembles),
        MEMBERS: list(study.members),
    }
    names = [who] if who in study.ensembles else groups.get(who, [who])
    return [name + each.suffix for each in rounds(study) for name in names]


def figures_of(study: ExperimentConfig, name: str, runs: Runs) -> dict[str, Estimate | None]:
    """The figures `WHO.METRIC` of all runs that are meant, None where a run is not done.

    METRIC may hold `*`: `recall/*` means the recall of every class.
    """
    who, metric = name.split(".", 1)
    found: dict[str, Estimate | None] = {}
    for run in subjects(study, who):
        metrics = runs[run].metrics if run in runs else {metric: None}
        names = [each for each in metrics if fnmatchcase(each, metric)]
        if not names:
            raise ValueError(f"{name}: no figure {metric!r} in the results of {run}")
        found |= {f"{run}.{each}": metrics[each] for each in names}
    return found


def gates(study: ExperimentConfig, runs: Runs) -> list[html.Gate]:
    """Every gate; one of several runs is asked of the weakest."""
    return [_gate(study, name, least, runs) for name, least in study.gates.items()]


def _gate(study: ExperimentConfig, name: str, least: float, runs: Runs) -> html.Gate:
    found = figures_of(study, name, runs)
    values = {at: f.value for at, f in found.items() if f is not None and f.value is not None}
    if not values:
        return html.Gate(name, f"at least {least}", "not measured", False)
    lowest = min(values, key=lambda at: values[at])
    said = f"{values[lowest]:.4f}" + (f" ({lowest})" if len(found) > 1 else "")
    missing = f", {len(found) - len(values)} not measured" if len(values) < len(found) else ""
    passed = not missing and values[lowest] >= least
    return html.Gate(name, f"at least {least}", said + missing, passed)


def claimed(
    study: ExperimentConfig, runs: Runs
) -> Iterator[tuple[str, str, Claim, Estimate | None]]:
    """Every claim by its name, with each figure that it speaks of."""
    for name, claim in study.claims.items():
        for at, figure in figures_of(study, name, runs).items():
            yield name, at, claim, figure


def claims(study: ExperimentConfig, runs: Runs) -> list[html.Section]:
    """What others state of a figure, what is believable, and what was found."""
    if not study.claims:
        return []
    rows: list[tuple[html.Cell, ...]] = []
    for _, at, claim, figure in claimed(study, runs):
        ends = f"{claim.believable[0]:g} to {claim.believable[1]:g}"
        said = verdict(claim.believable, figure)
        rows.append((at, claim.claimed, ends, figure, said, claim.why))
    columns = ("figure", "claimed", "believable", "found", "", "why")
    note = "Above what is believable, a leak is likelier than a better model: run consilium audit."
    return [html.Table(columns, rows, "Claims", note)]


def verdict(believable: tuple[float, float], figure: Estimate | None) -> str:
    """Where a figure stands beside the believable range."""
    if figure is None or figure.value is None:
        return "not measured"
    low, high = believable
    return "below" if figure.value < low else "above" if figure.value > high else "within"
