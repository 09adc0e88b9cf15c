"""A study's report: members and council side by side, the gates, and what it all says."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from commands import datasets
from commands.council import read_tables
from commands.study_file import Study
from commands.thumbnails import thumbnail
from evaluation import council, council_report, report
from evaluation import figures as drawings
from evaluation.intervals import Figure
from evaluation.results import Results, read_results, write_results
from evaluation.run_report import MAIN, facts, notes, pictures
from evaluation.table import PredictionTable

Subjects = dict[str, dict[str, Figure]]
COUNCIL = "council"
SPLITS = ("val", "test")


def write(study: Study, folder: Path) -> bool:
    """Writes report.html and results.json of the study; whether every gate passed."""
    runs = read_runs(study, folder)
    gates = [gate(name, least, runs) for name, least in study.gates.items()]
    first = next(iter(runs.values()))
    results = replace(
        first,
        name=study.name,
        others={name: run.metrics for name, run in runs.items()},
        gates={gate.name: gate.passed for gate in gates},
    )
    report.write_report(folder / "report.html", study.title, sections(study, folder, runs, gates))
    write_results(folder / "results.json", results)
    return all(gate.passed for gate in gates)


def read_runs(study: Study, folder: Path) -> dict[str, Results]:
    """Results of the council (first, where there is one) and of every member."""
    council = {COUNCIL: folder / COUNCIL} if study.council else {}
    folders = council | {name: folder / "members" / name for name in study.members}
    return {name: read_results(path / "results.json") for name, path in folders.items()}


def gate(name: str, least: float, runs: dict[str, Results]) -> report.Gate:
    """One gate; `members.METRIC` asks it of the weakest member."""
    who, metric = name.split(".", 1)
    asked = [run for run in runs if (run == COUNCIL) == (who == COUNCIL)]
    for run in asked:
        if metric not in runs[run].metrics:
            raise ValueError(f"gate {name}: no figure {metric!r} in the results of {run}")
    values = {run: runs[run].metrics[metric].value for run in asked}
    found = [value for value in values.values() if value is not None]
    lowest = min(found, default=None)
    passed = lowest is not None and len(found) == len(values) > 0 and lowest >= least
    said = "not measured" if lowest is None else f"{lowest:.4f}"
    return report.Gate(name, f"at least {least}", said, passed)


def lead(runs: dict[str, Results]) -> list[str]:
    """What the study found, in one or two sentences."""
    members = {name: run.metrics["accuracy"] for name, run in runs.items() if name != COUNCIL}
    best = max(members, key=lambda name: members[name].value or 0.0)
    single = f"{best}, the best of {len(members)} members, {report.number(members[best])}"
    if COUNCIL not in runs:
        return [f"Accuracy of {single} on the {runs[best].split} split."]
    council = runs[COUNCIL].metrics["accuracy"]
    many = f"{council.n:,} images of {council.patients:,} patients"
    return [
        f"The council of {len(members)} reaches accuracy {report.number(council)} on {many} of the "
        f"{runs[COUNCIL].split} split; {single}."
    ]


def sections(
    study: Study, folder: Path, runs: dict[str, Results], gates: list[report.Gate]
) -> list[report.Section]:
    """The page from top to bottom."""
    first = next(iter(runs))
    said = voting(study, folder) if study.council else alone(folder, runs)
    return [
        said[0],
        *notes(runs[first]),
        *([report.Gates(gates)] if gates else []),
        *said[1:],
        *learning(folder, runs),
        report.Details(facts(runs[first])),
    ]


def voting(study: Study, folder: Path) -> list[report.Section]:
    """Every voter beside the best single member, from the members' tables."""
    val, test = (read_tables([Path(t) for t in study.tables(folder, s)], s) for s in SPLITS)
    fitted = council.fit(val, study.attribute)
    judged = council.judge(fitted, test)
    shown = disputes(folder, test)
    return council_report.sections(fitted, judged, test, study.voter, shown)


def disputes(folder: Path, tables: dict[str, PredictionTable]) -> list[tuple[bytes, str]]:
    """The images that the members disagree on most, as the council's data module finds them."""
    data = datasets.from_configs([str(folder / COUNCIL / "config.yaml")])
    manifest = data.listed().table
    paths = dict(zip(manifest["id"], manifest["path"], strict=True))
    found = council.disputed(list(tables.values()))
    return [(thumbnail(Path(paths[name])), f"{name}\n{said}") for name, said in found]


def alone(folder: Path, runs: dict[str, Results]) -> list[report.Section]:
    """Members without a council."""
    tables = {
        name: PredictionTable.read(folder / "members" / name / "predictions" / "test.parquet")
        for name in runs
    }
    roc = report.Picture(drawings.roc_compared(tables), "Mean over classes.", "ROC of all")
    each = [section for table in tables.values() for section in pictures(table)]
    return [report.Text(" ".join(lead(runs)), lead=True), side_by_side(runs), roc, *each]


def side_by_side(runs: dict[str, Results]) -> report.Table:
    """Main figures of members that have no council."""
    rows: list[tuple[report.Cell, ...]] = [
        (name, *(run.metrics[key] for key in MAIN)) for name, run in runs.items()
    ]
    note = "In small: 95 % intervals. nll is the mean negative log-likelihood (smaller is better)."
    return report.Table(("", *MAIN), rows, "Members", note)


def learning(folder: Path, runs: dict[str, Results]) -> list[report.Section]:
    """Learning curves of every member."""
    files = {name: folder / "members" / name / "history.csv" for name in runs if name != COUNCIL}
    return [
        report.Picture(drawings.learning_curves(pd.read_csv(file)), heading=f"Learning: {name}")
        for name, file in files.items()
        if file.is_file()
    ]


def last_words(study: Study, folder: Path) -> list[str]:
    """What the study found and where it stands, for the terminal."""
    runs = read_runs(study, folder)
    gates = [gate(name, least, runs) for name, least in study.gates.items()]
    verdicts = [
        f"gate {g.name}: {'pass' if g.passed else 'FAIL'} ({g.asked}, found {g.found})"
        for g in gates
    ]
    return [*lead(runs), *verdicts, f"Report: {folder / 'report.html'}"]
