"""An ensemble from prediction tables: voters fitted on validation, evaluated once on test."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation import diversity
from evaluation.diversity import NllDecomposition, PairDiversity
from evaluation.grouping import row_unit
from evaluation.metrics.calibration import Temperature, fit_temperature, nll
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable, align, in_class_order, refuse_test
from evaluation.selective import fit_conformal, fit_referral, risk_coverage
from evaluation.stats.bootstrap import DRAWS
from evaluation.stats.estimate import Estimate, Estimates, mean_estimate
from evaluation.stats.paired_tests import Differences, differences_to_baseline
from evaluation.voters.registry import VOTERS, VoterOptions
from evaluation.voters.simple import Voter, pool_tables, stacked_probabilities
from evaluation.voters.store import FittedEnsemble

NO_OPTIONS = VoterOptions()
Tables = Mapping[str, PredictionTable]
View = Callable[[PredictionTable], PredictionTable]


def as_is(table: PredictionTable) -> PredictionTable:
    """The table itself: one row per image."""
    return table


@dataclass(frozen=True)
class FittedVoters:
    """Every voter fitted on validation, and the best single member.

    Args:
        ensembles: calibrated ensembles by name of the voter.
        not_fitted: for each voter that could not be fitted, the reason.
        temperatures: temperature of each member alone.
        best_member: the member of least validation NLL at its own temperature, to which voters
            are compared.
        warnings: warnings raised while fitting.
    """

    ensembles: dict[str, FittedEnsemble]
    not_fitted: dict[str, str]
    temperatures: dict[str, Temperature]
    best_member: str
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluatedVoters:
    """Metrics of members and voters on test.

    Args:
        member_metrics: metrics of each member.
        voter_metrics: metrics of each calibrated voter.
        gains: each voter minus the best single member at its own temperature.
        diversity: diversity of each two members, by their names joined with ' & '.
        agreement: fraction of the rows on which all members predict the same class.
        nll_decomposition: NLL of the geometric mean as mean member minus diversity.
        rows: what the rows of the evaluated tables are: images, studies or patients.
    """

    member_metrics: dict[str, Estimates]
    voter_metrics: dict[str, Estimates]
    gains: dict[str, Differences]
    diversity: dict[str, PairDiversity]
    agreement: Estimate
    nll_decomposition: NllDecomposition
    rows: str


@dataclass(frozen=True)
class EnsemblePredictions:
    """Predictions of one voter and of its members on the same images, studies or patients.

    Args:
        voter: name of the voter.
        members: tables of the members.
        uncalibrated: the voter's table before its temperature.
        calibrated: the voter's table.
    """

    voter: str
    members: dict[str, PredictionTable]
    uncalibrated: PredictionTable
    calibrated: PredictionTable


def fit_voters(val: Tables, options: VoterOptions = NO_OPTIONS) -> FittedVoters:
    """Fits every voter whose options are given, then its temperature, on validation tables.

    Tables of the test split are refused.
    """
    for table in val.values():
        refuse_test(table, "an ensemble")
    names, tables = list(val), align(list(val.values()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        temperatures = {n: fit_temperature(t) for n, t in zip(names, tables, strict=True)}
        voters, not_fitted = _create_voters(tables, options)
        ensembles = {name: _calibrate(voter, tables, names) for name, voter in voters.items()}
    losses = [
        float(nll(calibrate_table(t, temperatures[n])).mean())
        for n, t in zip(names, tables, strict=True)
    ]
    messages = sorted({str(warning.message) for warning in caught})
    best_member = names[int(np.argmin(losses))]
    return FittedVoters(ensembles, not_fitted, temperatures, best_member, messages)


def _create_voters(
    tables: Sequence[PredictionTable], options: VoterOptions
) -> tuple[dict[str, Voter], dict[str, str]]:
    """Every voter whose options are given, and why fitting failed for others."""
    voters, not_fitted = {}, {}
    for name, spec in VOTERS.items():
        if spec.missing_options(options):
            continue
        try:
            voters[name] = spec.create(tables, options)
        except ValueError as error:
            if "validation" not in spec.requirements:
                raise
            not_fitted[name] = str(error)
    return voters, not_fitted


def _calibrate(
    voter: Voter, tables: Sequence[PredictionTable], names: Sequence[str]
) -> FittedEnsemble:
    pooled = pool_tables(voter, tables)
    hashes = [member_hash(table, name) for name, table in zip(names, tables, strict=True)]
    digest = str(pooled.meta.get("manifest_digest") or "")
    return FittedEnsemble(voter, hashes, pooled.class_names, fit_temperature(pooled), digest)


def member_hash(table: PredictionTable, name: str) -> str:
    """Hash of the weights that made a table; `name` if the table does not state it."""
    return str(table.meta.get("weights") or table.meta.get("checkpoint_hash") or name)


def calibrate_table(table: PredictionTable, temperature: Temperature) -> PredictionTable:
    """The table with its probabilities at a temperature."""
    return table.with_probabilities(temperature(table.probabilities))


def combine_members(ensemble: FittedEnsemble, tables: Sequence[PredictionTable]) -> PredictionTable:
    """The ensemble's prediction table; ValueError if the tables come from other members."""
    members = _members_of(ensemble, tables)
    return pool_tables(ensemble, members)


def ensemble_predictions(
    ensemble: FittedEnsemble, tables: Tables, view: View = as_is
) -> EnsemblePredictions:
    """Tables of the ensemble and its members, each seen through `view` (one row per study, ...)."""
    members = _members_of(ensemble, list(tables.values()))
    return EnsemblePredictions(
        voter=ensemble.name,
        members={name: view(table) for name, table in tables.items()},
        uncalibrated=view(pool_tables(ensemble.voter, members)),
        calibrated=view(pool_tables(ensemble, members)),
    )


def _members_of(
    ensemble: FittedEnsemble, tables: Sequence[PredictionTable]
) -> list[PredictionTable]:
    """The tables, aligned, in the ensemble's class order, verified to be of its members."""
    aligned = [in_class_order(table, ensemble.class_names) for table in align(tables)]
    for number, (table, required) in enumerate(zip(aligned, ensemble.members, strict=True), 1):
        weights = table.meta.get("weights") or table.meta.get("checkpoint_hash")
        if weights and weights != required:
            raise ValueError(f"table {number} comes from weights {weights}, not {required}")
    return aligned


def evaluate_voters(
    fitted: FittedVoters,
    test: Tables,
    draws: int = DRAWS,
    seed: int = 0,
    view: View = as_is,
) -> EvaluatedVoters:
    """Metrics of members and voters on test, and differences of each voter to the best member.

    `view` turns each image table into the table that is evaluated, such as one row per study.
    """
    tables = dict(zip(test, align(list(test.values())), strict=True))
    members = {name: view(table) for name, table in tables.items()}
    voters = {
        name: view(combine_members(ensemble, list(tables.values())))
        for name, ensemble in fitted.ensembles.items()
    }
    best = fitted.best_member
    baseline = view(calibrate_table(tables[best], fitted.temperatures[best]))
    labeled = [table.labeled for table in members.values()]
    pairs, agreement = diversity.member_diversity(members, draws, seed)
    return EvaluatedVoters(
        member_metrics={n: compute_metrics(table, draws, seed) for n, table in members.items()},
        voter_metrics={n: compute_metrics(table, draws, seed) for n, table in voters.items()},
        gains=differences_to_baseline(voters, baseline, draws, seed),
        diversity=pairs,
        agreement=agreement,
        nll_decomposition=diversity.decompose_nll(
            stacked_probabilities(labeled), labeled[0].labels
        ),
        rows=row_unit(labeled[0]),
    )


@dataclass(frozen=True)
class SelectiveMetrics:
    """Effect on test of one referral threshold or conformal limit that was fitted on validation.

    Args:
        label: the rule, such as `refer above risk 0.05`.
        coverage: fraction of the images that are answered.
        error_rate: fraction of the answered images that are wrong, or of sets without the label.
        set_size: mean number of classes in a set; None for a referral.
    """

    label: str
    coverage: Estimate | float
    error_rate: Estimate
    set_size: Estimate | None = None


def evaluate_selective(
    val: PredictionTable,
    test: PredictionTable,
    risks: Sequence[float] = (0.01, 0.02, 0.05),
    alphas: Sequence[float] = (0.05, 0.1),
) -> tuple[list[SelectiveMetrics], float]:
    """Referral and conformal sets of one ensemble, and its area under risk and coverage on test."""
    val, test = val.labeled, test.labeled
    rules = [_evaluate_referral(val, test, risk) for risk in risks]
    rules += [_evaluate_sets(val, test, alpha) for alpha in alphas]
    return rules, risk_coverage(test.probabilities, test.labels).aurc


def _evaluate_referral(
    val: PredictionTable, test: PredictionTable, risk: float
) -> SelectiveMetrics:
    answered = fit_referral(val, risk).is_confident(test.probabilities)
    wrong = test.predictions != test.labels
    error_rate = mean_estimate(test.patients[answered], wrong[answered], "no image is answered")
    coverage = mean_estimate(test.patients, answered)
    return SelectiveMetrics(f"refer above risk {risk:g}", coverage, error_rate)


def _evaluate_sets(val: PredictionTable, test: PredictionTable, alpha: float) -> SelectiveMetrics:
    limit = fit_conformal(val, alpha)
    sets = limit.predict_sets(test.probabilities)
    missed = ~sets[np.arange(len(test)), test.labels]
    note = " (validation too small: sets contain all classes)" if limit.is_trivial else ""
    return SelectiveMetrics(
        f"sets at {1 - alpha:.0%}{note}",
        1.0,
        mean_estimate(test.patients, missed),
        mean_estimate(test.patients, sets.sum(axis=1)),
    )


def most_disputed(tables: Sequence[PredictionTable], count: int = 12) -> list[tuple[str, str]]:
    """Ids of the images that members differ on most, with the label and each prediction."""
    aligned = align(tables)
    members = stacked_probabilities(aligned)
    order = np.argsort(-diversity.js_divergence(members), kind="stable")[:count]
    names, labels = aligned[0].class_names, aligned[0].labels
    images = []
    for row in order:
        predicted = ", ".join(f"{names[m.argmax()]} {m.max():.2f}" for m in members[:, row])
        label = names[labels[row]] if labels[row] >= 0 else "unknown"
        images.append(
            (str(aligned[0].rows["id"].iloc[row]), f"label: {label}; predicted: {predicted}")
        )
    return images


def check_test_tables(val: Tables, test: Tables) -> None:
    """Raises ValueError unless test tables are of the same weights and of other images than val."""
    if list(val) != list(test):
        raise ValueError(f"--val has members {list(val)}, --test has {list(test)}")
    for name in val:
        fitted, evaluated = member_hash(val[name], ""), member_hash(test[name], "")
        if fitted != evaluated:
            raise ValueError(f"{name}: --val is of weights {fitted}, --test of {evaluated}")
        if "val" in test[name].splits:
            raise ValueError(f"--test {name}: contains rows of split 'val'")
        shared = set(val[name].rows["id"]) & set(test[name].rows["id"])
        if shared:
            raise ValueError(f"--test {name}: {len(shared)} of its ids are in --val as well, for "
                             f"example {min(shared)!r}")  # fmt: skip
