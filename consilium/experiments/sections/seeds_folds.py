"""Seeds and folds: what chance in training moves, apart from what the choice of patients does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd

from consilium.experiments.config import MEMBERS, ExperimentConfig
from consilium.experiments.plan import Round, rounds
from consilium.experiments.results import Runs, table_of
from evaluation.metrics import ranking
from evaluation.metrics.compute import Estimates, compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.reports.run import MAIN
from evaluation.stats.estimate import Estimate

Pooled = dict[tuple[str, int | None], Estimates]
WITHIN = ("auroc", *ranking.NAMES)  # scores of models trained apart do not stand on one scale
SEEDS = (
    "Mean over seeds, and the standard deviation between them: what chance in training moves. The "
    "intervals of the other tables are what the choice of test patients moves; neither holds the "
    "other."
)
FOLDS = (
    "Each image was tested once, by a model whose training and validation held nothing of its "
    "patient; intervals are over patients and take the models as they are. What goes by the order "
    "of scores (auroc, average precision, sensitivity at a specificity) is the mean over folds, "
    "as the scores of models trained apart do not stand on one scale."
)


def sections(study: ExperimentConfig, pooled: Pooled) -> list[html.Section]:
    """Folds pooled, seeds with their spread; nothing for a study of neither."""
    shown = [_folds(pooled)] if study.folds and pooled else []
    return [*shown, *([_seeds(over_seeds(study, pooled))] if len(study.seeds) > 1 else [])]


def over_folds(study: ExperimentConfig, runs: Runs, folder: Path) -> Pooled:
    """Figures of each member and ensemble at each seed, over all its folds together."""
    found: Pooled = {}
    seeds: list[int] | list[None] = study.seeds or [None]
    for name in (*study.ensembles, *study.members):
        for seed in seeds:
            names = of_seed(study, name, seed)
            if all(run in runs for run in names):
                found[name, seed] = _pooled(study, names, runs, folder)
    return found


def of_seed(study: ExperimentConfig, name: str, seed: int | None) -> list[str]:
    """The runs of a member or ensemble with a seed, one for each fold."""
    return [name + each.suffix for each in rounds(study) if each.seed == seed]


def _pooled(study: ExperimentConfig, names: list[str], runs: Runs, folder: Path) -> Estimates:
    if not study.folds:
        return runs[names[0]].metrics
    where = {run: folder / MEMBERS / run for run in names}
    tables = [table_of(path if path.is_dir() else folder / run) for run, path in where.items()]
    found = compute_metrics(together(tables))
    for metric in found:
        if metric.split("/")[0] in WITHIN:
            values = [runs[run].metrics[metric].value for run in names]
            found[metric] = _mean(values, found[metric])
    return found


def _mean(values: Sequence[float | None], over_all: Estimate) -> Estimate:
    """The mean over folds in place of the figure over all of them; None if a fold has none."""
    known = [value for value in values if value is not None]
    mean = float(np.mean(known)) if len(known) == len(values) else None
    why = "mean over folds" if mean is not None else "not measured in every fold"
    return replace(over_all, value=mean, low=None, high=None, reason=why)


def together(tables: Sequence[PredictionTable]) -> PredictionTable:
    """The rows of several tables in one; a sample in two of them is refused."""
    rows = pd.concat([table.rows for table in tables], ignore_index=True)
    logits = np.concatenate([table.logits for table in tables])
    return PredictionTable(rows, logits, tables[0].class_names)


def over_seeds(study: ExperimentConfig, pooled: Pooled) -> pd.DataFrame:
    """Mean, standard deviation, least and greatest of each figure over the seeds."""
    rows = []
    for name in (*study.ensembles, *study.members):
        each = [found for (subject, _), found in pooled.items() if subject == name]
        for metric in MAIN if len(each) > 1 else ():
            values = np.array([found[metric].value for found in each], dtype=float)
            spread = {"mean": values.mean(), "sd": values.std(ddof=1)}
            ends = {"least": values.min(), "greatest": values.max()}
            rows.append({"run": name, "figure": metric, "seeds": len(each), **spread, **ends})
    return pd.DataFrame(rows)


def _seeds(found: pd.DataFrame) -> html.Section:
    rows: list[tuple[html.Cell, ...]] = []
    for name, each in found.groupby("run", sort=False) if len(found) else ():
        cells = [value for _, one in each.iterrows() for value in (one["mean"], one["sd"])]
        rows.append((str(name), int(each["seeds"].iloc[0]), *map(float, cells)))
    columns = ("", "seeds", *(word for metric in MAIN for word in (metric, "sd")))
    return html.Table(columns, rows, "Over seeds", SEEDS)


def _folds(pooled: Pooled) -> html.Section:
    rows: list[tuple[html.Cell, ...]] = [
        (name + Round(seed).suffix, each["accuracy"].n, *(each[metric] for metric in MAIN))
        for (name, seed), each in pooled.items()
    ]
    return html.Table(("", "images", *MAIN), rows, "Over folds", FOLDS)
