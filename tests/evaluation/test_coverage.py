"""Small simulations; the full ones are in benchmarks/coverage.py."""

import numpy as np
import pytest

from benchmarks.coverage import coverage, drawn
from evaluation.metrics.compute import compute_metrics
from evaluation.predictions import PredictionTable
from evaluation.stats.auc import areas
from evaluation.stats.clusters import Clusters
from tests.evaluation.tables import make


def test_intervals_hold_the_truth_with_four_correlated_images_a_patient() -> None:
    held = coverage(rounds=50, patients=100, films=4, draws=300, population=100_000)
    for name, share in held.items():
        assert share >= 0.82, name  # 50 rounds: four standard errors below 0.95
    assert np.mean(list(held.values())) > 0.89


@pytest.mark.parametrize("rare", [2, 4])
def test_a_class_of_few_patients_does_not_narrow_the_interval(rare: int) -> None:
    """Where redraws speak alone, 2 patients hold 40 % and 4 patients 75 % instead of 95 %."""
    rng, held = np.random.default_rng(rare), []
    label = np.repeat([0, 1], [200, rare])
    rows = make(len(label), 2).rows.assign(label=label)
    for _ in range(60):
        right = rng.random(len(label)) < np.where(label == 0, 0.9, 0.7)
        logits = np.eye(2)[np.where(right, label, 1 - label)] * (1 + rng.random((len(label), 1)))
        found = compute_metrics(PredictionTable(rows, logits, ["none", "simple"]), draws=300)
        held.append(found["balanced_accuracy"].low <= 0.8 <= found["balanced_accuracy"].high)
    assert np.mean(held) >= 0.82


def test_intervals_that_forget_the_patient_do_not_hold_it() -> None:
    """The mutation: the same tables with every image its own patient."""
    widths = []
    for seed in range(5):
        table = drawn(80, 4, seed)[0]
        alone = table.rows.assign(patient=table.rows["id"])
        forgotten = type(table)(alone, table.logits, table.class_names)
        widths.append([_width(t, "nll") for t in (table, forgotten)])
        positive = (table.labels == 0)[:, None]
        errors = [
            areas(t.probabilities[:, :1], positive, Clusters.make(t.patients, t.labels)).covariance
            for t in (table, forgotten)
        ]
        assert errors[0][0, 0] > 1.5 * errors[1][0, 0]
    assert np.mean(widths, axis=0)[0] > 1.2 * np.mean(widths, axis=0)[1]


def _width(table: PredictionTable, name: str) -> float:
    figure = compute_metrics(table, draws=400)[name]
    return figure.high - figure.low
