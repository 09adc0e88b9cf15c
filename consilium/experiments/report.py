"""A study's page: gates and claims, members, ensembles, cost, data, and how it all was made."""

import os
import platform
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from consilium.experiments import tables
from consilium.experiments.config import ENSEMBLE, MEMBERS, ExperimentConfig
from consilium.experiments.plan import plan
from consilium.experiments.results import Runs, claims, gates, read_runs, subjects
from consilium.experiments.sections import audit, cost, ensemble, saliency, seeds_folds, sparsity
from evaluation.plots import curves as drawings
from evaluation.reports import html
from evaluation.reports.run import MAIN, facts
from evaluation.results import write_results

LIBRARIES = ("torch", "torchvision", "lightning", "timm", "albumentations", "numpy")


def write(study: ExperimentConfig, folder: Path) -> tuple[bool, list[str]]:
    """Writes report.html, results.json and results/; whether all gates passed, and last words."""
    runs = read_runs(study, folder)
    pooled = seeds_folds.over_folds(study, runs, folder)
    sparse = sparsity.beside(study, runs, folder)
    asked = gates(study, runs)
    first = next(iter(runs.values()))
    others = {name: run.metrics for name, run in runs.items()}
    passed = {gate.name: gate.passed for gate in asked}
    meta = _relative(first.meta, folder)
    results = replace(first, name=study.name, others=others, gates=passed, meta=meta)
    page = sections(study, folder, runs, pooled, sparse)
    html.write_report(folder / "report.html", study.title, page)
    tables.write(study, folder, runs, pooled, sparse)
    write_results(folder / "results.json", results)
    return all(passed.values()), last_words(study, folder, runs)


def _relative(meta: dict[str, Any], folder: Path) -> dict[str, Any]:
    """An ensemble's members by paths from the study's folder, which may be moved."""
    if "members" not in meta:
        return meta
    members = {
        name: {**member, "path": os.path.relpath(member["path"], folder)}
        for name, member in meta["members"].items()
    }
    return {**meta, "members": members}


def last_words(study: ExperimentConfig, folder: Path, runs: Runs) -> list[str]:
    """What the study found and where it stands, for the terminal."""
    verdicts = [
        f"gate {g.name}: {'pass' if g.passed else 'FAIL'} ({g.asked}, found {g.found})"
        for g in gates(study, runs)
    ]
    return [lead(study, runs), *verdicts, f"Report: {folder / 'report.html'}"]


def lead(study: ExperimentConfig, runs: Runs) -> str:
    """What the study found, in one or two sentences."""
    members = {n: runs[n].metrics["accuracy"] for n in subjects(study, MEMBERS) if n in runs}
    ensembles = [name for name in subjects(study, ENSEMBLE) if name in runs]
    said = []
    for name in ensembles:
        found = runs[name].metrics["accuracy"]
        said.append(f"{name}: accuracy {html.number(found)} on {html.counted(found)}.")
    if members:
        best = max(members, key=lambda name: members[name].value or 0.0)
        found = members[best]
        many = "" if ensembles else f" on {html.counted(found)}"
        which = f"{best}, the best of {len(members)} members here"
        said.append(f"{which}: accuracy {html.number(found)}{many}.")
    return " ".join(said)


def sections(
    study: ExperimentConfig,
    folder: Path,
    runs: Runs,
    pooled: seeds_folds.Pooled,
    sparse: sparsity.Beside,
) -> list[html.Section]:
    """The page from top to bottom."""
    first = next(iter(runs))
    asked = gates(study, runs)
    return [
        html.Text(lead(study, runs), lead=True),
        *notes(runs),
        *missing(study, folder),
        *([html.Gates(asked)] if asked else []),
        *claims(study, runs),
        side_by_side(runs),
        *seeds_folds.sections(study, pooled),
        *by_level(study, runs),
        *sparsity.sections(study, folder, sparse),
        *ensemble.sections(study, folder, runs),
        *saliency.sections(study, folder),
        *learning(folder, runs),
        *cost.table(cost.costs(runs, folder / MEMBERS)),
        *audit.sections(audit.audits(runs, folder), runs),
        html.Details({**facts(runs[first]), **environment()}),
    ]


def notes(runs: Runs) -> list[html.Section]:
    """What the data of any run warns of, each warning once."""
    said = (str(note) for run in runs.values() for note in run.meta.get("notes", []))
    return [html.Text(note) for note in dict.fromkeys(said)]


def missing(study: ExperimentConfig, folder: Path) -> list[html.Section]:
    """Which runs the page does without."""
    runs = plan(study, folder)
    changed = [run.name for run in runs if run.changed()]
    lost = [run.name for run in runs if run.name not in changed and not run.done()]
    said = {"Not done yet": lost, "Made with other settings than the study has now": changed}
    return [
        html.Text(f"{why}, and not in this report: {', '.join(names)}.")
        for why, names in said.items()
        if names
    ]


def side_by_side(runs: Runs) -> html.Table:
    """Main figures of all ensembles and members."""
    rows: list[tuple[html.Cell, ...]] = [
        (name, *(run.metrics[key] for key in MAIN)) for name, run in runs.items()
    ]
    note = "In small: 95 % intervals. nll is the mean negative log-likelihood (smaller is better)."
    strong = [at for at, name in enumerate(runs) if name.startswith(ENSEMBLE)]
    heading = "Ensembles and members" if strong else "Members"
    return html.Table(("", *MAIN), rows, heading, note, strong=strong)


def by_level(study: ExperimentConfig, runs: Runs) -> list[html.Section]:
    """The same by study or patient, where the study asks for it."""
    if study.level == "image":
        return []
    names = ("accuracy", "kappa", "auroc", "nll")
    rows: list[tuple[html.Cell, ...]] = [
        (
            name,
            run.metrics[f"{study.level}/accuracy"].n,
            *(run.metrics[f"{study.level}/{key}"] for key in names),
        )
        for name, run in runs.items()
    ]
    note = f"Of the images of a {study.level} the probabilities are averaged."
    columns = ("", "n", *names)
    return [html.Table(columns, rows, f"By {study.level}", note)]


def learning(folder: Path, runs: Runs) -> list[html.Section]:
    """Learning curves of every member."""
    files = {name: folder / MEMBERS / name / "history.csv" for name in runs}
    return [
        html.Picture(drawings.learning_curves(pd.read_csv(file)), heading=f"Learning: {name}")
        for name, file in files.items()
        if file.is_file()
    ]


def environment() -> dict[str, object]:
    """What wrote this page, and on what."""
    known = {name: version(name) for name in LIBRARIES}
    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {number}" for name, number in known.items()),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "GPUs": ", ".join(gpus) or "none",
    }
