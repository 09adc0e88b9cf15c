"""Evaluated voters of the ensembles, or a comparison of members without an ensemble."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

from consilium.experiments.config import ExperimentConfig
from consilium.experiments.plan import rounds
from consilium.experiments.sections import Runs, Tables
from consilium.inference import data_config
from datamodules.images import read_thumbnail
from evaluation import diversity
from evaluation.ensemble import (
    EvaluatedVoters,
    FittedVoters,
    ensemble_predictions,
    load_voters,
    most_disputed,
)
from evaluation.metrics.operating_points import OperatingPoints
from evaluation.plots import curves
from evaluation.predictions import PredictionTable
from evaluation.reports import comparison, html
from evaluation.reports import ensemble as ensemble_report
from evaluation.reports.clinical import decision_curves, operating_point_tables
from evaluation.reports.run import prediction_sections
from evaluation.results import voters_folder
from evaluation.stats.estimate import Estimate, Estimates
from evaluation.voters.registry import voter_spec

MAX_PLOTTED = 4  # members without an ensemble that get plots of their own


@dataclass(frozen=True)
class EnsembleResults:
    """The stored evaluation of an ensemble's voters."""

    run: str
    is_shown: bool  # in the report, which shows the first round only
    fitted: FittedVoters
    evaluated: EvaluatedVoters
    operating_points: OperatingPoints
    tables: dict[str, PredictionTable]  # test predictions of the members
    disputed: list[tuple[bytes, str]]  # thumbnails and captions of images


@dataclass(frozen=True)
class MemberComparison:
    """Members of an experiment without an ensemble, in the first round."""

    tables: dict[str, PredictionTable]  # test predictions
    metrics: dict[str, Estimates]
    pairs: dict[str, diversity.PairDiversity]  # empty unless all classify the same images
    agreement: Estimate | None  # fraction of images with equal predictions of all; None likewise


def load_ensembles(
    config: ExperimentConfig, folder: Path, runs: Runs, tables: Tables
) -> list[EnsembleResults]:
    """Evaluated voters of every ensemble that is done, read from its folder."""
    ensembles = []
    for r, name in product(rounds(config), config.ensembles):
        run, is_shown = name + r.suffix, r == rounds(config)[0]
        members = [member + r.suffix for member in config.ensembles[name]]
        if {run, *members} <= runs.keys():
            own = {member: tables[member] for member in members}
            voters = load_voters(voters_folder(folder / run), own)
            images = _disputed_images(folder / run, own) if is_shown else []
            ensembles.append(EnsembleResults(run, is_shown, *voters, own, images))
    return ensembles


def _disputed_images(run: Path, tables: Tables) -> list[tuple[bytes, str]]:
    """Thumbnails of the images that the members disagree on most."""
    manifest = data_config.load_datamodule([str(run / "config.yaml")]).load_manifest().table
    paths = dict(zip(manifest["id"], manifest["path"], strict=True))
    captions = most_disputed(tables)
    return [(read_thumbnail(Path(paths[name])), f"{name}\n{caption}") for name, caption in captions]


def compare_members(config: ExperimentConfig, runs: Runs, tables: Tables) -> MemberComparison:
    """The members of the first round that has any, compared if they classify the same images."""
    of_rounds = [[name + r.suffix for name in config.members] for r in rounds(config)]
    of_round = next(names for names in of_rounds if runs.keys() & set(names))
    compared = {name: tables[name] for name in of_round if name in runs}
    metrics = {name: runs[name].metrics for name in compared}
    first = next(iter(compared.values()))
    is_comparable = len(compared) > 1 and all(
        table.class_names == first.class_names and set(table.rows["id"]) == set(first.rows["id"])
        for table in compared.values()
    )
    if not is_comparable:
        return MemberComparison(compared, metrics, {}, None)
    return MemberComparison(compared, metrics, *diversity.member_diversity(compared))


def ensemble_sections(
    config: ExperimentConfig, ensembles: list[EnsembleResults]
) -> list[html.Section]:
    """Sections on all voters of each ensemble; plots of members only in the last."""
    page: list[html.Section] = []
    shown = [ensemble for ensemble in ensembles if ensemble.is_shown]
    for e in shown:
        voter, reason = e.fitted.select(config.voter), e.fitted.reason(config.voter)
        lead = ensemble_report.summary_sentence(e.fitted, e.evaluated, voter)
        lead = f"{lead} {reason}." if reason else lead
        page.append(html.Text(lead, f"{e.run}: every voter of {', '.join(e.tables)}"))
        page += operating_point_tables(e.operating_points, next(iter(e.tables.values())))
        page += _voter_sections(e, voter, with_plots=e is shown[-1])
    return page


def _voter_sections(e: EnsembleResults, voter: str, with_plots: bool) -> list[html.Section]:
    """Tables of all voters; with plots, `ensemble_sections` of the ensemble's report."""
    if not with_plots:
        reasons = e.fitted.not_fitted
        not_fitted = [(voter_spec(name).label, reason) for name, reason in reasons.items()]
        columns, heading = ("voter", "reason"), "Voters that were not fitted"
        return [
            ensemble_report.voter_table(e.fitted, e.evaluated, voter),
            ensemble_report.gain_table(e.fitted, e.evaluated),
            *([html.Table(columns, not_fitted, heading)] if not_fitted else []),
        ]
    predictions = ensemble_predictions(e.fitted.ensembles[voter], e.tables)
    disputed = ensemble_report.disputed_section(e.tables, e.disputed)
    return ensemble_report.ensemble_sections(e.fitted, e.evaluated, predictions, disputed)


def shown_tables(ensembles: list[EnsembleResults], members: MemberComparison | None) -> Tables:
    """Test predictions by run: of the first few members, or of each ensemble's first member."""
    if members:
        return dict(list(members.tables.items())[:MAX_PLOTTED])
    return {e.run: next(iter(e.tables.values())) for e in ensembles if e.is_shown}


def read_val_and_test(
    folders: Mapping[str, Path], tables: Tables, ensembles: list[EnsembleResults],
    members: MemberComparison | None,
) -> dict[str, list[PredictionTable]]:  # fmt: skip
    """[val, test] of each run of `shown_tables`; val of an ensemble is in its voters' folder."""
    read = dict[str, list[PredictionTable]]()
    for name in shown_tables(ensembles, members):
        folder = folders[name] if members else voters_folder(folders[name])
        if (val := folder / "predictions/val.parquet").is_file():
            read[name] = [PredictionTable.read(val), tables[name]]
    return read


def referral_sections(val_and_test: Mapping[str, list[PredictionTable]]) -> list[html.Section]:
    """Referral and prediction sets of each run, with its name in the headings of several."""
    page = list[html.Section]()
    for name, (val, test) in val_and_test.items():
        of = f" of {name}" * (len(val_and_test) > 1)
        sections = ensemble_report.referral_sections(val, test)
        page += [replace(section, heading=f"{section.heading}{of}") for section in sections]
    return page


def member_sections(compared: MemberComparison) -> list[html.Section]:
    """Strengths and diversity of comparable members, and the plots of the first few."""
    page: list[html.Section] = []
    if compared.agreement is not None:
        names = next(iter(compared.tables.values())).class_names
        page.append(comparison.recall_table(compared.metrics, names))
        page.append(ensemble_report.diversity_table(compared.pairs, compared.agreement, "images"))
        page += decision_curves(compared.tables)
    roc = curves.roc_comparison(compared.tables)
    page.append(html.Plot(roc, "Mean over classes.", "ROC of all"))
    for name, table in list(compared.tables.items())[:MAX_PLOTTED]:
        of_member = prediction_sections(table, name)
        page += [replace(section, heading=f"{name}: {section.heading}") for section in of_member]
    return page
