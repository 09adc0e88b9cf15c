"""Small simulations of the coverage of intervals; benchmarks/coverage.py has the full ones."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.coverage import coverage, simulate_groups, simulate_tables, subgroup_alarms
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.stats.auc import delong
from evaluation.stats.bootstrap import Clusters
from evaluation.subgroups import compute_subgroups, flagged_gaps
from tests.evaluation.tables import make_table


def test_intervals_cover_the_truth_with_four_correlated_images_a_patient() -> None:
    coverages = coverage(rounds=50, patients=100, images=4, draws=300, population=100_000)
    for name, fraction in coverages.items():
        assert fraction >= 0.82, name  # 50 rounds: four standard errors below 0.95
    assert np.mean(list(coverages.values())) > 0.89


@pytest.mark.parametrize("rare", [2, 4])
def test_interval_covers_the_truth_with_few_patients_in_a_class(rare: int) -> None:
    """By the bootstrap alone, coverage is 40 % with 2 patients and 75 % with 4 instead of 95 %."""
    rng, covered = np.random.default_rng(rare), []
    labels = np.repeat([0, 1], [200, rare])
    rows = make_table(len(labels), 2).rows.assign(label=labels)
    for _ in range(60):
        is_correct = rng.random(len(labels)) < np.where(labels == 0, 0.9, 0.7)
        logits = np.eye(2)[np.where(is_correct, labels, 1 - labels)] * (
            1 + rng.random((len(labels), 1))
        )
        metrics = compute_metrics(PredictionTable(rows, logits, ["none", "simple"]), draws=300)
        estimate = metrics["balanced_accuracy"]
        covered.append(estimate.low <= 0.8 <= estimate.high)
    assert np.mean(covered) >= 0.82


def test_intervals_that_ignore_patients_are_too_narrow() -> None:
    """The mutation: the same tables with a patient of its own for each image."""
    widths = []
    for seed in range(5):
        table = simulate_tables(80, 4, seed)[0]
        rows = table.rows.assign(patient=table.rows["id"])
        ungrouped = type(table)(rows, table.logits, table.class_names)
        widths.append([_width(t, "nll") for t in (table, ungrouped)])
        positive = (table.labels == 0)[:, None]
        errors = [
            delong(
                t.probabilities[:, :1], positive, Clusters.from_patients(t.patients, t.labels)
            ).covariance
            for t in (table, ungrouped)
        ]
        assert errors[0][0, 0] > 1.5 * errors[1][0, 0]
    assert np.mean(widths, axis=0)[0] > 1.2 * np.mean(widths, axis=0)[1]


def test_groups_without_a_bias_are_flagged_in_at_most_5_percent_of_the_reports() -> None:
    """The mutation, a patient of its own for each image, is flagged in 7 of 10 reports."""
    alarms, of_images = subgroup_alarms(40, 120, 4)["any difference"], []
    assert sum(alarms) <= 5  # of 40; more are expected in 1 % of the cases at 5 %
    for seed in range(10):
        table = simulate_groups(120, 4, seed)
        rows = table.rows.assign(patient=table.rows["id"])
        of_images.append(bool(flagged_gaps(compute_subgroups(replace(table, rows=rows)))))
    assert sum(of_images) >= 5


def _width(table: PredictionTable, name: str) -> float:
    estimate = compute_metrics(table, draws=400)[name]
    return estimate.high - estimate.low
