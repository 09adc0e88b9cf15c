"""results/ of a study: every figure of its page as CSV, and all of them in one JSON file."""

import json
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from consilium.experiments.config import ENSEMBLE, MEMBERS, ExperimentConfig
from consilium.experiments.results import Runs, claimed, gates, subjects, verdict
from consilium.experiments.sections import cost, saliency, seeds_folds, sparsity
from evaluation.files import write_json, write_text
from evaluation.results import read_results
from evaluation.run_folder import voters_of
from evaluation.stats.estimate import Estimate

FOLDER = "results"


def write(
    study: ExperimentConfig,
    folder: Path,
    runs: Runs,
    pooled: seeds_folds.Pooled,
    sparse: sparsity.Beside,
) -> None:
    """One CSV a table that has rows, and tables.json with all of them; others are removed."""
    whole = tables(study, folder, runs, pooled, sparse)
    found = {name: table for name, table in whole.items() if len(table)}
    for name in whole.keys() - found.keys():
        (folder / FOLDER / f"{name}.csv").unlink(missing_ok=True)
    for name, table in found.items():
        write_text(folder / FOLDER / f"{name}.csv", table.to_csv(index=False))
    plain = {name: json.loads(table.to_json(orient="records")) for name, table in found.items()}
    write_json(folder / FOLDER / "tables.json", plain)


def tables(
    study: ExperimentConfig,
    folder: Path,
    runs: Runs,
    pooled: seeds_folds.Pooled,
    sparse: sparsity.Beside,
) -> dict[str, pd.DataFrame]:
    """Every table by name."""
    ensembles = set(subjects(study, ENSEMBLE))
    folds = pooled if study.folds else {}
    return {
        "members": _figures({n: r.metrics for n, r in runs.items() if n not in ensembles}),
        "ensembles": _figures({n: r.metrics for n, r in runs.items() if n in ensembles}),
        "voters": voters(folder, [name for name in subjects(study, ENSEMBLE) if name in runs]),
        "gates": pd.DataFrame([asdict(gate) for gate in gates(study, runs)]),
        "claims": claims(study, runs),
        "folds": _figures({f"{n} {s}" if s is not None else n: f for (n, s), f in folds.items()}),
        "seeds": seeds_folds.over_seeds(study, pooled),
        "sparse": _ends(sparse.gaps),
        "sparse_seeds": _ends(sparsity.over_seeds(study, sparse.means)),
        "changed": sparse.changed,
        "maps": saliency.table(study, folder),
        "cost": cost.costs(runs, folder / MEMBERS).rename(columns={"": "member"}),
    }


def _figures(groups: dict[str, dict[str, Estimate]]) -> pd.DataFrame:
    """One row a run and figure."""
    rows = [
        {"run": run, "figure": name, **asdict(figure)}
        for run, found in groups.items()
        for name, figure in found.items()
    ]
    return pd.DataFrame(rows)


def voters(folder: Path, ensembles: list[str]) -> pd.DataFrame:
    """Figures of every voter, and its gain over the best single member."""
    parts = []
    for ensemble in ensembles:
        others = read_results(voters_of(folder / ensemble) / "results.json").others
        shown = {name: each for name, each in others.items() if not name.startswith("member/")}
        parts.append(_figures(shown).rename(columns={"run": "voter"}).assign(ensemble=ensemble))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def claims(study: ExperimentConfig, runs: Runs) -> pd.DataFrame:
    """One row a claim and run."""
    rows = []
    for name, at, claim, figure in claimed(study, runs):
        low, high = claim.believable
        said = {"claim": name, "figure": at, "claimed": claim.claimed, "from": low, "to": high}
        found = None if figure is None else figure.value
        rows.append({**said, "found": found, "verdict": verdict(claim.believable, figure)})
    return pd.DataFrame(rows)


def _ends(found: pd.DataFrame) -> pd.DataFrame:
    """Differences to the controls with a column each end."""
    found = found.copy()
    for metric in sparsity.COMPARED if len(found) else ():
        ends = pd.DataFrame([asdict(figure) for figure in found.pop(metric)])[
            ["value", "low", "high"]
        ]
        found = found.join(ends.add_prefix(f"{metric}_"))
    return found
