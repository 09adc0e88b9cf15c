"""Results of an experiment, computed once from its run folders, with its gates and claims."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pandas as pd

from consilium.experiments.config import (
    ENSEMBLE,
    MEASURES,
    MEMBERS,
    Claim,
    ExperimentConfig,
    find_specs,
)
from consilium.experiments.plan import plan, run_names
from consilium.experiments.sections import Runs, appendix, ensemble, seeds_folds
from consilium.experiments.sections.sparsity import SparsityComparison, compare_with_controls
from evaluation.ensemble import EvaluatedVoters
from evaluation.files import read_json
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable, aggregate
from evaluation.reports import html
from evaluation.results import Results, read_results
from evaluation.sparsity import SPARSITY_FILE
from evaluation.stats.estimate import Estimate, Estimates

NO_INTERVAL = "a number of one run"


@dataclass(frozen=True)
class CheckedClaim:
    """A claim about one metric of one run, and the estimate; None if the run is not done."""

    name: str
    metric: str
    claim: Claim
    estimate: Estimate | None

    @property
    def value(self) -> float | None:
        """The measured value, None if there is none."""
        return self.estimate.value if self.estimate else None

    @property
    def position(self) -> str:
        """`below`, `within` or `above` the believable range, or `not measured`."""
        if self.value is None:
            return "not measured"
        low, high = self.claim.believable
        return "below" if self.value < low else "above" if self.value > high else "within"


@dataclass(frozen=True)
class ExperimentResults:
    """What the report, results.json, the CSV files and the summary of an experiment show."""

    config: ExperimentConfig
    folder: Path
    runs: Runs  # finished ensembles and members; with `study/accuracy` if the level is study
    histories: dict[str, pd.DataFrame]  # metrics by epoch of the members
    unfinished: list[str]  # names of runs
    changed: list[str]  # names of runs that were made with other settings
    gates: list[html.Gate]
    claims: list[CheckedClaim]
    pooled: seeds_folds.Pooled  # metrics over folds
    seeds: pd.DataFrame  # per run name and summary metric: mean and spread over the seeds
    sparsity: SparsityComparison
    ensembles: list[ensemble.EnsembleResults]
    members: ensemble.MemberComparison | None  # if there is no ensemble
    val_and_test: dict[str, list[PredictionTable]]  # of the runs with plots, if there is val
    saliency: appendix.SaliencyResults
    costs: pd.DataFrame  # one row per member
    audits: dict[str, dict[str, Any]]  # of each dataset, by the members that use it

    @property
    def ensemble_metrics(self) -> dict[str, Estimates]:
        """Metrics of the finished ensembles by run name."""
        names = run_names(self.config, ENSEMBLE)
        return {name: self.runs[name].metrics for name in names if name in self.runs}

    @property
    def member_metrics(self) -> dict[str, Estimates]:
        """Metrics of the finished members by run name."""
        names = run_names(self.config, MEMBERS)
        return {name: self.runs[name].metrics for name in names if name in self.runs}


def load_results(config: ExperimentConfig, folder: Path) -> ExperimentResults:
    """Reads every run folder once and computes everything that a report shows.

    Metrics of runs and voters are read. Computed are metrics over folds and by level, and paired
    differences of sparse members to their controls, which no single run knows.
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
    files = {n: folders[n] / "history.csv" for n in run_names(config, MEMBERS) if n in folders}
    histories = {name: pd.read_csv(file) for name, file in files.items() if file.is_file()}
    pooled = seeds_folds.pool_folds(config, runs, tables)
    ensembles = ensemble.load_ensembles(config, folder, runs, tables)
    members = None if ensembles else ensemble.compare_members(config, runs, tables)
    gated = add_measures(runs, folders, histories, {e.run: e.evaluated for e in ensembles})
    return ExperimentResults(
        config=config,
        folder=folder,
        runs=runs,
        histories=histories,
        unfinished=[r.name for r in planned if r.name not in finished and r.name not in changed],
        changed=changed,
        gates=evaluate_gates(config, gated),
        claims=check_claims(config, gated),
        pooled=pooled,
        seeds=seeds_folds.spread_over_seeds(config, pooled),
        sparsity=compare_with_controls(config, folder, tables),
        ensembles=ensembles,
        members=members,
        val_and_test=ensemble.read_val_and_test(folders, tables, ensembles, members),
        saliency=appendix.read_saliency(finished),
        costs=appendix.read_costs(histories, folder),
        audits=appendix.audit_data(runs, folder),
    )


def _read_run(config: ExperimentConfig, folder: Path, table: PredictionTable) -> Results:
    """The stored results of a run, with metrics by the experiment's level as `study/accuracy`."""
    results = read_results(folder / "results.json")
    if config.level == "image":
        return results
    metrics = compute_metrics(aggregate(table, config.level))
    by_name = {f"{config.level}/{name}": estimate for name, estimate in metrics.items()}
    return replace(results, metrics=results.metrics | by_name)


def add_measures(
    runs: Runs, folders: Mapping[str, Path], histories: Mapping[str, pd.DataFrame],
    evaluated: Mapping[str, EvaluatedVoters],
) -> Runs:  # fmt: skip
    """The runs with all that gates and claims can name: MEASURES, metrics on val and of voters."""
    minutes = {name: float(history["seconds"].sum()) / 60 for name, history in histories.items()}
    for name, voters in evaluated.items():
        if voters.member_metrics.keys() <= minutes.keys():
            minutes[name] = sum(minutes[member] for member in voters.member_metrics)
    more = {name: _measures(folders[name], minutes.get(name)) for name in runs}
    for name, voters in evaluated.items():
        more[name]["agreement"] = voters.agreement
        for voter, metrics in voters.voter_metrics.items():
            more[name] |= {f"{voter}/{metric}": e for metric, e in metrics.items()}
    return {name: replace(run, metrics={**run.metrics, **more[name]}) for name, run in runs.items()}


def _measures(folder: Path, minutes: float | None) -> Estimates:
    """Each of MEASURES of a run (value None if not measured), and its metrics on val."""
    sparse, val = folder / SPARSITY_FILE, folder / "results.val.json"
    content = read_json(sparse) if sparse.is_file() else {}
    values = {**dict.fromkeys(MEASURES), **content, "training_minutes": minutes}
    measures = {name: Estimate(values[name], None, None, "none", 0, 0, NO_INTERVAL)
                for name in MEASURES}  # fmt: skip
    metrics = read_results(val).metrics if val.is_file() else {}
    return {**measures, **{f"val/{name}": estimate for name, estimate in metrics.items()}}


def find_estimates(config: ExperimentConfig, name: str, runs: Runs) -> dict[str, Estimate | None]:
    """Estimates by RUN.METRIC that `name`, which is WHO.METRIC, matches; None if a run is not done.

    WHO is `members`, `ensemble`, or the name of a member or an ensemble. METRIC may contain `*`:
    `recall/*` is the recall of every class.
    """
    who, pattern = name.split(".", 1)
    estimates: dict[str, Estimate | None] = {}
    for run in run_names(config, who):
        metrics = runs[run].metrics if run in runs else {pattern: None}
        matches = [metric for metric in metrics if fnmatchcase(metric, pattern)]
        if not matches:
            raise ValueError(f"{name}: no metric {pattern!r} in the results of {run}")
        estimates |= {f"{run}.{metric}": metrics[metric] for metric in matches}
    return estimates


def evaluate_gates(config: ExperimentConfig, runs: Runs) -> list[html.Gate]:
    """Every gate with what was measured; a gate of several estimates passes if the worst does."""
    return [_evaluate_gate(config, name, limit, runs) for name, limit in config.gates.items()]


def _evaluate_gate(config: ExperimentConfig, name: str, limit: float, runs: Runs) -> html.Gate:
    """The gate WHO.METRIC (`name`): its worst estimate compared with the limit."""
    estimates = find_estimates(config, name, runs)
    values = {at: e.value for at, e in estimates.items() if e is not None and e.value is not None}
    spec = find_specs(config, name)[0]
    is_upper = not spec.higher_is_better
    required = f"at {'most' if is_upper else 'least'} {limit:g}"
    if spec.ideal is not None:
        required, is_upper = f"{spec.ideal:g} within {limit:g}", True
    if not values:
        return html.Gate(name, required, "not measured", False)
    compared = {
        at: abs(v - spec.ideal) if spec.ideal is not None else v for at, v in values.items()
    }
    worst = (max if is_upper else min)(compared, key=lambda at: compared[at])
    measured = f"{values[worst]:.4f}" + (f" ({worst})" if len(estimates) > 1 else "")
    missing = len(estimates) - len(values)
    measured += f", {missing} not measured" if missing else ""
    reaches = compared[worst] <= limit if is_upper else compared[worst] >= limit
    return html.Gate(name, required, measured, reaches and not missing)


def check_claims(config: ExperimentConfig, runs: Runs) -> list[CheckedClaim]:
    """One entry for each claim and each estimate that its WHO.METRIC matches."""
    return [
        CheckedClaim(name, metric, claim, estimate)
        for name, claim in config.claims.items()
        for metric, estimate in find_estimates(config, name, runs).items()
    ]
