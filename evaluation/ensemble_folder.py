"""Evaluated voters of an ensemble on disk, for reports that show them again."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evaluation.diversity import NllDecomposition, PairDiversity
from evaluation.ensemble import EvaluatedVoters, FittedVoters, member_hash
from evaluation.files import read_json, write_json
from evaluation.metrics.calibration import Temperature
from evaluation.predictions import PredictionTable
from evaluation.stats.estimate import Estimate, Estimates
from evaluation.stats.paired_tests import Difference
from evaluation.voters import store

FILE = "evaluation.json"
VERSION = 1
Groups = Mapping[str, Estimates]


def save_voters(
    folder: Path, fitted: FittedVoters, evaluated: EvaluatedVoters, groups: Groups
) -> None:
    """Writes `voters/<name>/` for each fitted voter, then evaluation.json.

    `groups`: metrics of the ensemble for each value of an attribute, empty without one.
    """
    for name, ensemble in fitted.ensembles.items():
        store.save(folder / "voters" / name, ensemble)
    content = {
        "version": VERSION,
        "voters": list(fitted.ensembles),
        "not_fitted": fitted.not_fitted,
        "temperatures": {name: asdict(t) for name, t in fitted.temperatures.items()},
        "best_member": fitted.best_member,
        "warnings": fitted.warnings,
        "metrics": {
            "members": _plain(evaluated.member_metrics),
            "voters": _plain(evaluated.voter_metrics),
        },
        "gains": {
            name: {metric: asdict(gain) for metric, gain in gains.items()}
            for name, gains in evaluated.gains.items()
        },
        "diversity": {name: asdict(pair) for name, pair in evaluated.diversity.items()},
        "agreement": asdict(evaluated.agreement),
        "nll": asdict(evaluated.nll_decomposition),
        "rows": evaluated.rows,
        "groups": _plain(groups),
    }
    write_json(folder / FILE, content)


def load_voters(
    folder: Path, tables: Mapping[str, PredictionTable]
) -> tuple[FittedVoters, EvaluatedVoters, dict[str, Estimates]]:
    """What `save_voters` wrote; `tables` are the members' predictions.

    Voters that were fitted for other members or classes are refused.
    """
    content = read_json(folder / FILE)
    if content.get("version") != VERSION:
        raise ValueError(f"{folder / FILE}: version {content.get('version')!r}, not {VERSION}")
    members = [member_hash(table, name) for name, table in tables.items()]
    class_names = next(iter(tables.values())).class_names
    fitted = FittedVoters(
        {n: store.load(folder / "voters" / n, members, class_names) for n in content["voters"]},
        content["not_fitted"],
        {name: Temperature(**plain) for name, plain in content["temperatures"].items()},
        content["best_member"],
        content["warnings"],
    )
    evaluated = EvaluatedVoters(
        member_metrics=_estimates(content["metrics"]["members"]),
        voter_metrics=_estimates(content["metrics"]["voters"]),
        gains={
            name: {metric: _difference(plain) for metric, plain in gains.items()}
            for name, gains in content["gains"].items()
        },
        diversity={name: _pair(plain) for name, plain in content["diversity"].items()},
        agreement=Estimate(**content["agreement"]),
        nll_decomposition=NllDecomposition(**content["nll"]),
        rows=content["rows"],
    )
    return fitted, evaluated, _estimates(content["groups"])


def _plain(groups: Mapping[str, Estimates]) -> dict[str, Any]:
    return {group: {name: asdict(e) for name, e in of.items()} for group, of in groups.items()}


def _estimates(plain: dict[str, Any]) -> dict[str, Estimates]:
    return {group: {name: Estimate(**e) for name, e in of.items()} for group, of in plain.items()}


def _difference(plain: dict[str, Any]) -> Difference:
    return Difference(**{**plain, "estimate": Estimate(**plain["estimate"])})


def _pair(plain: dict[str, Any]) -> PairDiversity:
    return PairDiversity(**{name: Estimate(**estimate) for name, estimate in plain.items()})
