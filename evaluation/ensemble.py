"""An ensemble from prediction tables: voters fitted on validation, evaluated on test, stored."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from evaluation import diversity
from evaluation.diversity import NllDecomposition, PairDiversity
from evaluation.files import read_json, write_json
from evaluation.metrics import calibration
from evaluation.metrics.calibration import (
    Calibration,
    CalibrationMethod,
    cross_validated_gain,
    fit_calibration,
    fit_temperature,
)
from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.operating_points import OperatingPoints
from evaluation.predictions import (
    Level,
    PredictionTable,
    Rule,
    Tables,
    aggregate,
    align,
    align_members,
    in_class_order,
    refuse_test,
    row_unit,
)
from evaluation.stats import paired_tests
from evaluation.stats.bootstrap import DRAWS
from evaluation.stats.estimate import Estimate, Estimates, mean_estimate
from evaluation.stats.paired_tests import Difference, Differences
from evaluation.voters import store
from evaluation.voters.registry import AUTO, AUTO_PATIENTS, VOTERS, VoterOptions
from evaluation.voters.simple import Voter, pool_tables, stacked_probabilities
from evaluation.voters.store import FittedEnsemble

FILE, VERSION = "evaluation.json", 7
NO_OPTIONS = VoterOptions()
BY_IMAGE: tuple[Level, Rule] = ("image", "mean")
RISKS = (0.01, 0.02, 0.05)  # of referral
CLASSES = (Estimate, Difference, PairDiversity, NllDecomposition, Calibration)  # in the file


@dataclass(frozen=True)
class FittedVoters:
    """Voters and member calibrations fitted on validation, and the best single member there."""

    ensembles: dict[str, FittedEnsemble]  # by name of the voter
    not_fitted: dict[str, str]  # the reason, by name of the voter
    calibrations: dict[str, Calibration]  # of each member alone
    best_member: str  # that of least validation NLL once calibrated
    num_patients: int  # with labels in val
    #: NLL of the mean minus that of learned weights on held-out patients of val, and its standard
    #: error; empty if val is too small for learned weights
    learned_gain: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def select(self, voter: str) -> str:
        """`voter` itself; for `auto`, `learned` if val has evidence for it, else `soft`.

        On held-out patients of val the NLL of learned weights must be lower than that of the mean
        by more than a standard error; val must have 50 patients for each member.
        """
        if voter != AUTO:
            return voter
        gain, error = self.learned_gain or (0.0, 0.0)
        return "learned" if gain > error else "soft"

    def reason(self, voter: str) -> str:
        """One sentence on why `select` chose its voter; empty if `voter` is not `auto`."""
        if voter != AUTO:
            return ""
        if not self.learned_gain:
            few = f"{self.num_patients:,} patients of val are fewer than {AUTO_PATIENTS}"
            return f"Voter chosen by the size of val: {few} for each of {len(self.calibrations)}"
        gain, error = self.learned_gain
        return (
            "Voter chosen on held-out patients of val: the NLL of learned weights is "
            f"{abs(gain):.4f} {'lower' if gain >= 0 else 'higher'} than that of the mean "
            f"(standard error {error:.4f})"
        )


@dataclass(frozen=True)
class EvaluatedVoters:
    """Metrics of members and calibrated voters on test."""

    member_metrics: dict[str, Estimates]  # of raw probabilities
    calibrated_metrics: dict[str, Estimates]  # of the members, each calibrated like a voter
    voter_metrics: dict[str, Estimates]
    gains: dict[str, Differences]  # each voter minus the best member, also calibrated
    diversity: dict[str, PairDiversity]  # of each two members, by names joined with ' & '
    agreement: Estimate  # fraction of the rows on which all members predict the same class
    nll_decomposition: NllDecomposition
    rows: str  # what the rows of the tables are: images, studies or patients


@dataclass(frozen=True)
class EnsemblePredictions:
    """Predictions of one voter and of its members on the same images, studies or patients."""

    voter: str
    members: dict[str, PredictionTable]
    uncalibrated: PredictionTable  # the voter's table before calibration
    calibrated: PredictionTable


def fit_voters(
    val: Tables, options: VoterOptions = NO_OPTIONS, method: CalibrationMethod = "temperature"
) -> FittedVoters:
    """Fits every voter whose options are given, then calibrates it; ValueError for test tables."""
    for table in val.values():
        refuse_test(table, "an ensemble")
    tables = align_members(val)
    ensembles, not_fitted = dict[str, FittedEnsemble](), dict[str, str]()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        calibrations = {name: fit_calibration(table, method) for name, table in tables.items()}
        for name, spec in VOTERS.items():
            if spec.missing_options(options):
                continue
            try:
                voter = spec.create(list(tables.values()), options)
            except ValueError as error:
                if "validation" not in spec.requirements:
                    raise
                not_fitted[name] = str(error)
            else:
                ensembles[name] = _calibrate(voter, tables, calibrations, method)
    best_member = min(
        tables, key=lambda n: calibration.nll(calibrate_table(tables[n], calibrations[n])).mean()
    )
    messages = sorted({str(warning.message) for warning in caught})
    patients = len(np.unique(next(iter(tables.values())).labeled.patients.astype(str)))
    is_large = patients >= AUTO_PATIENTS * len(tables) and "learned" in ensembles
    gain = _learned_gain([table.labeled for table in tables.values()]) if is_large else []
    return FittedVoters(ensembles, not_fitted, calibrations, best_member, patients, gain, messages)


def _learned_gain(tables: Sequence[PredictionTable]) -> list[float]:
    """[gain, standard error]: NLL of the mean minus that of learned weights, cross-validated."""

    def gains_of_fold(fold: np.ndarray) -> np.ndarray:
        """Gains of the rows in the mask `fold` (n,), by voters fitted on the other rows."""
        rest, holdout = ([t.take(np.flatnonzero(mask)) for t in tables] for mask in (~fold, fold))
        nlls = []
        for name in ("soft", "learned"):
            voter = VOTERS[name].create(rest, NO_OPTIONS)
            fitted = fit_temperature(pool_tables(voter, rest))
            nlls.append(calibration.nll(pool_tables(voter, holdout, fitted)))
        return np.asarray(nlls[0] - nlls[1])

    return [*cross_validated_gain(tables[0], gains_of_fold)]


def _calibrate(
    voter: Voter, tables: Tables, calibrations: Mapping[str, Calibration],
    method: CalibrationMethod,
) -> FittedEnsemble:  # fmt: skip
    """The fitted voter with a calibration fitted on the same `tables`, and those of its members."""
    pooled = pool_tables(voter, list(tables.values()))
    return FittedEnsemble(
        voter,
        [member_hash(table, name) for name, table in tables.items()],
        pooled.class_names,
        fit_calibration(pooled, method),
        str(pooled.meta.get("manifest_digest") or ""),
        [calibrations[name] for name in tables],
        common_precision(tables),
    )


def common_precision(tables: Tables) -> str:
    """`trainer.precision` of all members, "" if unknown; ValueError if they have different ones."""
    stated = {name: str(p) for name, t in tables.items() if (p := t.meta.get("precision"))}
    if len(set(stated.values())) > 1:
        values = ", ".join(f"{name} {precision}" for name, precision in stated.items())
        hint = "evaluate all of them with one trainer.precision"
        raise ValueError(f"members were evaluated in different precisions: {values}; {hint}")
    return next(iter(stated.values()), "")


def member_hash(table: PredictionTable, name: str) -> str:
    """Hash of the weights that made a table; `name` if the table does not state it."""
    return str(table.meta.get("weights") or table.meta.get("checkpoint_hash") or name)


def calibrate_table(table: PredictionTable, fitted: Calibration) -> PredictionTable:
    """A copy of the table with probabilities calibrated by `fitted`."""
    return table.with_probabilities(fitted(table.probabilities))


def combine_members(ensemble: FittedEnsemble, tables: Sequence[PredictionTable]) -> PredictionTable:
    """The ensemble's prediction table; ValueError if the tables come from other members."""
    return pool_tables(ensemble.voter, _members(ensemble, tables), ensemble.calibration)


def ensemble_predictions(
    ensemble: FittedEnsemble, tables: Tables, level: tuple[Level, Rule] = BY_IMAGE
) -> EnsemblePredictions:
    """Tables of the ensemble and its members with one row per image, study or patient."""
    members = _members(ensemble, list(tables.values()))
    return EnsemblePredictions(
        ensemble.voter.name,
        {name: aggregate(table, *level) for name, table in tables.items()},
        aggregate(pool_tables(ensemble.voter, members), *level),
        aggregate(pool_tables(ensemble.voter, members, ensemble.calibration), *level),
    )


def _members(ensemble: FittedEnsemble, tables: Sequence[PredictionTable]) -> list[PredictionTable]:
    """The tables, aligned, in the ensemble's class order; ValueError if of other members."""
    aligned = [in_class_order(table, ensemble.class_names) for table in align(tables)]
    for number, (table, required) in enumerate(zip(aligned, ensemble.members, strict=True), 1):
        weights = member_hash(table, "")
        if weights and weights != required:
            raise ValueError(f"table {number} comes from weights {weights}, not {required}")
    return aligned


def evaluate_voters(
    fitted: FittedVoters, test: Tables, draws: int = DRAWS, seed: int = 0,
    level: tuple[Level, Rule] = BY_IMAGE,
) -> EvaluatedVoters:  # fmt: skip
    """Metrics of members and voters on test, by `level`, and gains over the best member."""
    tables, voters = align_members(test), dict[str, PredictionTable]()
    precision = common_precision(tables)
    for voter, ensemble in fitted.ensembles.items():
        if ensemble.precision and precision and ensemble.precision != precision:
            fitted_in = f"the voter {voter} was fitted in precision {ensemble.precision}"
            raise ValueError(f"{fitted_in}, the test predictions are in {precision}; use one")
        voters[voter] = aggregate(combine_members(ensemble, list(tables.values())), *level)
    members = {name: aggregate(table, *level) for name, table in tables.items()}
    calibrated = {
        name: aggregate(calibrate_table(table, fitted.calibrations[name]), *level)
        for name, table in tables.items()
    }
    baseline = calibrated[fitted.best_member]
    gains = paired_tests.differences_to_baseline(voters, baseline, draws, seed)
    labeled = [table.labeled for table in members.values()]
    pairs, agreement = diversity.member_diversity(members, draws, seed)
    of_members, of_calibrated, of_voters = (
        {name: compute_metrics(table, draws, seed) for name, table in models.items()}
        for models in (members, calibrated, voters)
    )
    return EvaluatedVoters(
        of_members,
        of_calibrated,
        of_voters,
        paired_tests.holm_corrected(gains),
        pairs,
        agreement,
        diversity.decompose_nll(stacked_probabilities(labeled), labeled[0].labels),
        row_unit(labeled[0]),
    )


@dataclass(frozen=True)
class ReferralMetrics:
    """Effect on test of a referral threshold that was fitted on validation."""

    risk: float  # error rate on val of the images that are answered, at most
    coverage: Estimate  # fraction of the images that are answered
    error_rate: Estimate  # of those


def evaluate_referral(
    val: PredictionTable, test: PredictionTable
) -> tuple[list[ReferralMetrics], float]:
    """Metrics on test of referral fitted on val for each of `RISKS`; area under risk-coverage."""
    val, test = val.labeled, test.labeled
    rules, patients, probabilities = [], test.patients, test.probabilities
    for risk in RISKS:
        answered = probabilities.max(axis=1) >= calibration.fit_referral(val, risk)
        wrong = test.predictions[answered] != test.labels[answered]
        error_rate = mean_estimate(patients[answered], wrong, "no image is answered")
        rules.append(ReferralMetrics(risk, mean_estimate(patients, answered), error_rate))
    return rules, calibration.risk_coverage(probabilities, test.labels).aurc


def most_disputed(tables: Tables, count: int = 12) -> list[tuple[str, str]]:
    """(id, caption with label and predictions) of the images with the largest JS divergence."""
    first, members = next(iter(tables.values())), stacked_probabilities(list(tables.values()))
    order = np.argsort(-diversity.js_divergence(members), kind="stable")[:count]
    names, labels, images = first.class_names, first.label_names, []
    for row in order:
        predictions = zip(tables, members[:, row], strict=True)
        lines = [f"label: {labels[row]}"]
        lines += [f"{name}: {names[p.argmax()]} {p.max():.2f}" for name, p in predictions]
        images.append((str(first.rows["id"].iloc[row]), "\n".join(lines)))
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
        if shared := set(val[name].rows["id"]) & set(test[name].rows["id"]):
            count = f"{len(shared)} of its ids are in --val as well"
            raise ValueError(f"--test {name}: {count}, for example {min(shared)!r}")


def save_voters(
    folder: Path, fitted: FittedVoters, evaluated: EvaluatedVoters, decisions: OperatingPoints
) -> None:
    """Writes `voters/<name>/` of each voter, then evaluation.json; `decisions` may be empty."""
    for name, ensemble in fitted.ensembles.items():
        store.save(folder / "voters" / name, ensemble)
    content = {
        "version": VERSION,
        "fitted": {**asdict(replace(fitted, ensembles={})), "ensembles": list(fitted.ensembles)},
        "evaluated": asdict(evaluated),
        "decisions": {name: _plain_estimates(rules) for name, rules in decisions.items()},
    }
    write_json(folder / FILE, content)


def _plain_estimates(by_name: Mapping[str, Estimates]) -> dict[str, dict[str, Any]]:
    """The same mapping with each Estimate as a dict of its fields."""
    return {name: {m: asdict(e) for m, e in of.items()} for name, of in by_name.items()}


def load_voters(
    folder: Path, tables: Tables
) -> tuple[FittedVoters, EvaluatedVoters, OperatingPoints]:
    """What `save_voters` wrote; ValueError unless fitted for members and classes of `tables`."""
    content = read_json(folder / FILE)
    if content.get("version") != VERSION:
        raise ValueError(f"{folder / FILE}: version {content.get('version')!r}, not {VERSION}")
    members = [member_hash(table, name) for name, table in tables.items()]
    class_names = next(iter(tables.values())).class_names
    _restore_classes(content)
    names = content["fitted"].pop("ensembles")
    ensembles = {n: store.load(folder / "voters" / n, members, class_names) for n in names}
    fitted = FittedVoters(ensembles, **content["fitted"])
    evaluated = EvaluatedVoters(**content["evaluated"])
    return fitted, evaluated, content["decisions"]


def _restore_classes(plain: dict[str, Any]) -> None:
    """Replaces each inner dict that has the fields of one of `CLASSES` by an instance, in place."""
    for name, value in plain.items():
        if isinstance(value, dict):
            _restore_classes(value)
            of_fields = [c for c in CLASSES if value.keys() == {f.name for f in fields(c)}]
            plain[name] = of_fields[0](**value) if of_fields else value
