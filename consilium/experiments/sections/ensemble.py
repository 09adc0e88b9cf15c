"""What the voters of a study's ensembles are worth; members side by side where there are none."""

from dataclasses import replace
from pathlib import Path

from consilium.cli.ensemble import read_tables
from consilium.experiments.config import MEMBERS, ExperimentConfig
from consilium.experiments.plan import member_folders, rounds
from consilium.experiments.results import Runs, subjects, table_of
from consilium.inference import data_config
from consilium.inference.thumbnails import thumbnail
from evaluation import ensemble
from evaluation.ensemble import EvaluatedVoters, FittedVoters
from evaluation.plots import curves as drawings
from evaluation.predictions import PredictionTable
from evaluation.reports import comparison, html
from evaluation.reports import ensemble as ensemble_report
from evaluation.reports.run import pictures

SPLITS = ("val", "test")
MOST = 4  # members without an ensemble that get pictures of their own


def sections(study: ExperimentConfig, folder: Path, runs: Runs) -> list[html.Section]:
    """Every voter of every ensemble in the first round; members alone where there is none."""
    first = rounds(study)[0]
    there = [name for name in study.ensembles if name + first.suffix in runs]
    if not there:
        members = [name + first.suffix for name in study.members]
        done = [name for name in subjects(study, MEMBERS) if name in runs]
        return alone(folder, [name for name in members if name in runs] or done)
    page: list[html.Section] = []
    for name in there:
        fitted, judged, test = judged_anew(study, folder, name)
        said = ensemble_report.sections(
            fitted, judged, test, study.voter, disputes(folder / (name + first.suffix), test)
        )
        heading = f"{name}{first.suffix}: every voter of {', '.join(test)}"
        page += [html.Text(said[0].body if isinstance(said[0], html.Text) else "", heading)]
        # the page of each further ensemble would repeat the pictures of its members
        page += said[1:] if name == there[-1] else [s for s in said[1:] if tabular(s)]
        if study.attribute:
            page.append(
                ensemble_report.by_part(fitted, test, study.voter, study.attribute, draws=2000)
            )
    return page


def tabular(section: html.Section) -> bool:
    """Whether it is a table of voters or of differences."""
    return isinstance(section, html.Table) and section.heading.startswith(("Voters", "Diff"))


def judged_anew(
    study: ExperimentConfig, folder: Path, name: str
) -> tuple[FittedVoters, EvaluatedVoters, dict[str, PredictionTable]]:
    """Every voter fitted on val and judged on test, in the first round."""
    members = member_folders(study, folder, name, rounds(study)[0])
    val, test = (read_tables([m / "predictions" / f"{s}.parquet" for m in members], s)
                 for s in SPLITS)  # fmt: skip
    fitted = ensemble.fit_voters(val, study.attribute, study.attend)
    return fitted, ensemble.evaluate_voters(fitted, test), test


def disputes(run: Path, tables: dict[str, PredictionTable]) -> list[tuple[bytes, str]]:
    """The images that the members disagree on most, as the ensemble's data module finds them."""
    manifest = data_config.from_configs([str(run / "config.yaml")]).listed().table
    paths = dict(zip(manifest["id"], manifest["path"], strict=True))
    found = ensemble.disputed(list(tables.values()))
    return [(thumbnail(Path(paths[name])), f"{name}\n{said}") for name, said in found]


def alone(folder: Path, names: list[str]) -> list[html.Section]:
    """Members without an ensemble, of one round; side by side where they answer one question."""
    tables = {name: table_of(folder / MEMBERS / name) for name in names}
    first = next(iter(tables.values()))
    same = [t for t in tables.values() if t.class_names == first.class_names
            and set(t.rows["id"]) == set(first.rows["id"])]  # fmt: skip
    page: list[html.Section] = []
    if 1 < len(tables) == len(same):
        found = comparison.compare(tables)
        page += [comparison.strengths(found, tables), comparison.diverse(found)]
    page.append(html.Picture(drawings.roc_compared(tables), "Mean over classes.", "ROC of all"))
    for name, table in list(tables.items())[:MOST]:
        drawn = pictures(table)
        page += [replace(p, heading=f"{name}: {p.heading}") for p in drawn]
    return page
