"""Repeated runs: metrics pooled over folds, and their spread over seeds."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from consilium.experiments.config import ExperimentConfig
from consilium.experiments.plan import Round, rounds
from consilium.experiments.sections import Runs, Tables
from evaluation.metrics.compute import compute_metrics
from evaluation.metrics.registry import metric_label, metric_spec, summary_metrics
from evaluation.predictions import PredictionTable
from evaluation.reports import html
from evaluation.stats.estimate import Estimates

SEEDS_NOTE = (
    "Mean over seeds and standard deviation: the variation from training. Intervals of other "
    "tables are the variation from the choice of test patients; neither includes the other. "
    "Probabilities of ensembles are calibrated, those of members are raw."
)
FOLDS_NOTE = (
    "Each image was tested once, by a model trained and validated without its patient. Intervals "
    "are over patients, for these models. Metrics that rank all images (AUROC, average precision, "
    "sensitivity at a specificity) are means over folds: the models' scores are not on one scale. "
    "Probabilities of ensembles are calibrated, those of members are raw."
)
Pooled = dict[tuple[str, int | None], Estimates]  # by name and seed, over all folds


def pool_folds(config: ExperimentConfig, runs: Runs, tables: Tables) -> Pooled:
    """Metrics over all folds, by (name, seed), of members and ensembles with all folds done."""
    pooled: Pooled = {}
    for name in (*config.ensembles, *config.members):
        for seed, names in runs_by_seed(config, name).items():
            if all(run in runs for run in names):
                pooled[name, seed] = _metrics_over_folds(names, runs, tables)
    return pooled


def runs_by_seed(config: ExperimentConfig, name: str) -> dict[int | None, list[str]]:
    """Names of the runs of a member or ensemble, one per fold, by seed."""
    runs: dict[int | None, list[str]] = {}
    for r in rounds(config):
        runs.setdefault(r.seed, []).append(name + r.suffix)
    return runs


def concatenate(tables: Sequence[PredictionTable]) -> PredictionTable:
    """The rows of several tables in one; ValueError if a sample is in two of them."""
    rows = pd.concat([table.rows for table in tables], ignore_index=True)
    logits = np.concatenate([table.logits for table in tables])
    return PredictionTable(rows, logits, tables[0].class_names)


def _metrics_over_folds(names: list[str], runs: Runs, tables: Tables) -> Estimates:
    """Metrics over all folds; of a single run its own. Ranking metrics are means over folds."""
    if len(names) == 1:
        return runs[names[0]].metrics
    pooled = compute_metrics(concatenate([tables[name] for name in names]))
    for metric, estimate in pooled.items():
        if metric_spec(metric).is_rank_based:
            values = [runs[name].metrics[metric].value for name in names]
            mean = None if None in values else float(np.mean(np.array(values, dtype=float)))
            reason = "not measured in every fold" if mean is None else "mean over folds"
            pooled[metric] = replace(estimate, value=mean, low=None, high=None, reason=reason)
    return pooled


def spread_over_seeds(config: ExperimentConfig, pooled: Pooled) -> pd.DataFrame:
    """Mean, standard deviation, minimum and maximum of each summary metric over the seeds."""
    rows = []
    for name in (*config.ensembles, *config.members):
        of_seeds = [metrics for (subject, _), metrics in pooled.items() if subject == name]
        for metric in summary_metrics() if len(of_seeds) > 1 else ():
            values = np.array([metrics[metric].value for metrics in of_seeds], dtype=float)
            spread = {"mean": values.mean(), "sd": values.std(ddof=1)}
            spread |= {"min": values.min(), "max": values.max()}
            rows.append({"run": name, "metric": metric, "seeds": len(of_seeds), **spread})
    return pd.DataFrame(rows)


def folds_sections(config: ExperimentConfig, pooled: Pooled) -> list[html.Section]:
    """The table of metrics over folds, if there are folds."""
    if not config.folds or not pooled:
        return []
    metrics = {name + Round(seed).suffix: m for (name, seed), m in pooled.items()}
    return [html.models_table(metrics, "Over folds", FOLDS_NOTE, count="n")]


def seeds_sections(seeds: pd.DataFrame) -> list[html.Section]:
    """The table of the spread over seeds, if there are several."""
    if seeds.empty:
        return []
    rows: list[tuple[html.Cell, ...]] = []
    for name, metrics in seeds.groupby("run", sort=False):
        cells = metrics[["mean", "sd"]].to_numpy(dtype=float).ravel().tolist()
        rows.append((str(name), int(metrics["seeds"].iloc[0]), *cells))
    labels = [label for metric in summary_metrics() for label in (metric_label(metric), "SD")]
    return [html.Table(("", "seeds", *labels), rows, "Over seeds", SEEDS_NOTE)]
