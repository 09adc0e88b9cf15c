"""Everything about an ensemble from its members' tables: fitted on val, judged once on test."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evaluation import diversity
from evaluation.grouping import rows_of
from evaluation.metrics.calibration import Temperature, fit_temperature
from evaluation.metrics.compute import Estimates, compute_metrics, nll
from evaluation.predictions import PredictionTable, align, in_class_order, refuse_test
from evaluation.stats.estimate import DRAWS, Estimate
from evaluation.stats.paired_tests import Difference, against
from evaluation.voters.attention import fit_part_attention, fit_stacked
from evaluation.voters.learned import fit_greedy, fit_learned, fit_per_class, fit_per_part
from evaluation.voters.simple import (
    Geometric,
    Majority,
    Soft,
    Voter,
    Weighted,
    parts_of,
    pool,
    stack,
)
from evaluation.voters.store import FittedEnsemble

Tables = Mapping[str, PredictionTable]
Fit = Callable[[Sequence[PredictionTable]], Voter]
View = Callable[[PredictionTable], PredictionTable]


@dataclass(frozen=True)
class FittedVoters:
    """Ensembles by voter's kind, why others could not be fitted, and the best single member.

    `best` has the least NLL on validation after its own temperature, which stands in
    `temperatures`: an ensemble is held against a member that is calibrated as well.
    """

    ensembles: dict[str, FittedEnsemble]
    left_out: dict[str, str]
    temperatures: dict[str, Temperature]
    best: str
    warned: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class EvaluatedVoters:
    """What the test split says: figures of members and voters, and voters against the best.

    `pairs` holds the diversity of each two members by their names joined with ' & '. `view` made
    of each image table the one that was measured, whose rows are `rows`: images, studies, patients.
    """

    members: dict[str, Estimates]
    voters: dict[str, Estimates]
    gains: dict[str, dict[str, Difference]]
    pairs: dict[str, diversity.Pair]
    agreement: Estimate
    split: diversity.Split
    view: View
    rows: str


def fit_voters(
    val: Tables,
    attribute: str = "",
    attended: Sequence[str] = (),
    weights: Sequence[float] | None = None,
) -> FittedVoters:
    """Fits every voter, then its temperature, on validation tables; tables of test are refused.

    `attribute` adds the voter with weights for each of its values, and `attended` names those
    of its values that an attention layer weighs. `weights` adds fixed ones.
    """
    for table in val.values():
        refuse_test(table, "an ensemble")
    names, tables = list(val), align(list(val.values()))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        alone = {n: fit_temperature(t) for n, t in zip(names, tables, strict=True)}
        voters, left_out = _voters(tables, attribute, attended, weights)
        ensembles = {kind: _calibrated(voter, tables, names) for kind, voter in voters.items()}
    losses = [
        float(nll(calibrated(t, alone[n])).mean()) for n, t in zip(names, tables, strict=True)
    ]
    warned = sorted({str(warning.message) for warning in caught})
    return FittedVoters(ensembles, left_out, alone, names[int(np.argmin(losses))], warned)


def _voters(
    tables: Sequence[PredictionTable],
    attribute: str,
    attended: Sequence[str],
    weights: Sequence[float] | None,
) -> tuple[dict[str, Voter], dict[str, str]]:
    """Every voter that these tables allow, and the reason for each that they do not."""
    fits: dict[str, Fit] = {
        "learned": fit_learned,
        "greedy": fit_greedy,
        "per_class": fit_per_class,
        "stacked": fit_stacked,
    }
    if attribute:
        fits["per_part"] = lambda given: fit_per_part(given, attribute)
    if attended:
        fits["part_attention"] = lambda given: fit_part_attention(given, attended, attribute)
    found: dict[str, Voter] = {"soft": Soft(), "geometric": Geometric(), "majority": Majority()}
    if weights is not None:
        found["weighted"] = Weighted(np.asarray(weights, float))
    left_out = {}
    for kind, each in fits.items():
        try:
            found[kind] = each(tables)
        except ValueError as error:
            left_out[kind] = str(error)
    return found, left_out


def _calibrated(
    voter: Voter, tables: Sequence[PredictionTable], names: list[str]
) -> FittedEnsemble:
    pooled = pool(voter, tables)
    hashes = [member_hash(table, name) for name, table in zip(names, tables, strict=True)]
    digest = str(pooled.meta.get("manifest_digest") or "")
    temperature = fit_temperature(pooled)
    return FittedEnsemble(voter, hashes, pooled.class_names, temperature, digest)


def member_hash(table: PredictionTable, name: str) -> str:
    """The hash of the weights behind a table; its name where the table does not say."""
    return str(table.meta.get("weights") or table.meta.get("checkpoint_hash") or name)


def calibrated(table: PredictionTable, temperature: Temperature) -> PredictionTable:
    """The table at a temperature."""
    return table.with_probabilities(temperature(table.probabilities))


def combine_members(ensemble: FittedEnsemble, tables: Sequence[PredictionTable]) -> PredictionTable:
    """The ensemble's own table; refused when the tables come from other members."""
    tables = [in_class_order(table, ensemble.class_names) for table in align(tables)]
    for at, (table, wanted) in enumerate(zip(tables, ensemble.members, strict=True), start=1):
        found = table.meta.get("weights") or table.meta.get("checkpoint_hash")
        if found and found != wanted:
            raise ValueError(f"table {at} comes from weights {found}; the voter's are {wanted}")
    first = tables[0]
    return first.with_probabilities(ensemble(stack(tables), parts_of(ensemble.voter, first)))


def evaluate_voters(
    fitted: FittedVoters,
    test: Tables,
    draws: int = DRAWS,
    seed: int = 0,
    view: View = lambda table: table,
) -> EvaluatedVoters:
    """Every figure of members and voters on test, and each voter against the best member.

    `view` makes of each image table the one that is measured, for instance one row a study.
    """
    tables = align(list(test.values()))
    members = {name: view(table) for name, table in zip(test, tables, strict=True)}
    voted = {
        kind: view(combine_members(ensemble, tables)) for kind, ensemble in fitted.ensembles.items()
    }
    alone = tables[list(test).index(fitted.best)]
    best = view(calibrated(alone, fitted.temperatures[fitted.best]))
    known = [table.labeled for table in members.values()]
    said, labels = stack(known), known[0].labels
    names, who = list(test), known[0].patients
    pairs = diversity.pairs(said, labels, who, draws, seed)
    return EvaluatedVoters(
        members={name: compute_metrics(table, draws, seed) for name, table in members.items()},
        voters={kind: compute_metrics(table, draws, seed) for kind, table in voted.items()},
        gains=against(voted, best, draws, seed),
        pairs={f"{names[i]} & {names[j]}": pair for (i, j), pair in pairs.items()},
        agreement=diversity.agreement(said, who, draws, seed),
        split=diversity.split(said, labels),
        view=view,
        rows=rows_of(known[0]),
    )


def disputed(tables: Sequence[PredictionTable], count: int = 12) -> list[tuple[str, str]]:
    """Ids of the images that members differ on most, with what each member says, in order."""
    aligned = align(tables)
    members = stack(aligned)
    order = np.argsort(-diversity.dispute(members), kind="stable")[:count]
    names, labels = aligned[0].class_names, aligned[0].labels
    found = []
    for row in order:
        votes = ", ".join(f"{names[m.argmax()]} {m.max():.2f}" for m in members[:, row])
        true = names[labels[row]] if labels[row] >= 0 else "unknown"
        found.append((str(aligned[0].rows["id"].iloc[row]), f"true: {true}; said: {votes}"))
    return found
