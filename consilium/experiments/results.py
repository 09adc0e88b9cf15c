"""Results of an experiment, read from its run folders and computed once."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from consilium.experiments.config import ENSEMBLE, MEMBERS, ExperimentConfig
from consilium.experiments.gates import (
    CheckedClaim,
    Runs,
    check_claims,
    evaluate_gates,
    run_names,
)
from consilium.experiments.plan import plan
from consilium.experiments.sections.appendix import (
    SaliencyEvaluation,
    audit_data,
    read_costs,
    read_saliency,
)
from consilium.experiments.sections.ensemble import (
    EnsembleResults,
    MemberComparison,
    compare_members,
    load_ensembles,
)
from consilium.experiments.sections.seeds_folds import RepeatedRuns, pool_rounds
from consilium.experiments.sections.sparsity import SparsityComparison, compare_with_controls
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable, aggregate
from evaluation.reports import html
from evaluation.results import Results, read_results


@dataclass(frozen=True)
class ExperimentResults:
    """What the report, results.json, the CSV files and the summary of an experiment show."""

    config: ExperimentConfig
    folder: Path
    runs: Runs  # finished ensembles and members; with `study/accuracy` if the level is study
    tables: Mapping[str, PredictionTable]  # their test predictions
    histories: dict[str, pd.DataFrame]  # metrics by epoch of the members
    unfinished: list[str]  # names of runs
    changed: list[str]  # names of runs that were made with other settings
    gates: list[html.Gate]
    claims: list[CheckedClaim]
    repeated: RepeatedRuns
    sparsity: SparsityComparison
    ensembles: list[EnsembleResults]
    members: MemberComparison | None  # if there is no ensemble
    saliency: list[SaliencyEvaluation]
    costs: pd.DataFrame  # one row per member
    audits: dict[str, dict[str, Any]]  # by digest of the dataset


def load_results(config: ExperimentConfig, folder: Path) -> ExperimentResults:
    """Reads every run folder once and computes everything that a report shows.

    Metrics of runs and voters are read; only what no single run knows is computed here: metrics
    over folds, by level, and paired differences of sparse members to their controls.
    """
    planned = plan(config, folder)
    finished = {run.name: run for run in planned if run.is_done()}
    changed = [run.name for run in planned if run.change()]
    names = [*run_names(config, ENSEMBLE), *run_names(config, MEMBERS)]
    folders = {name: finished[name].folder for name in names if name in finished}
    if not folders:
        raise ValueError(f"{folder}: no run of experiment {config.name} is done")
    tables = {n: PredictionTable.read(f / "predictions/test.parquet") for n, f in folders.items()}
    runs = {name: _read_run(config, path, tables[name]) for name, path in folders.items()}
    histories = {name: path / "history.csv" for name, path in folders.items()}
    ensembles = load_ensembles(config, folder, runs, tables)
    return ExperimentResults(
        config=config,
        folder=folder,
        runs=runs,
        tables=tables,
        histories={name: pd.read_csv(file) for name, file in histories.items() if file.is_file()},
        unfinished=[r.name for r in planned if r.name not in finished and r.name not in changed],
        changed=changed,
        gates=evaluate_gates(config, runs),
        claims=check_claims(config, runs),
        repeated=pool_rounds(config, runs, tables),
        sparsity=compare_with_controls(config, folder, tables),
        ensembles=ensembles,
        members=None if ensembles else compare_members(config, runs, tables),
        saliency=read_saliency(finished),
        costs=read_costs(runs, folder),
        audits=audit_data(runs, folder),
    )


def _read_run(config: ExperimentConfig, folder: Path, table: PredictionTable) -> Results:
    """The stored results of a run, with those of the experiment's level as `study/accuracy`."""
    results = read_results(folder / "results.json")
    if config.level == "image":
        return results
    metrics = compute_metrics(aggregate(table, config.level))
    by_name = {f"{config.level}/{name}": estimate for name, estimate in metrics.items()}
    return replace(results, metrics=results.metrics | by_name)
