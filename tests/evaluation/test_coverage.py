"""Small simulations; the full ones are in benchmarks/coverage.py."""

import numpy as np

from benchmarks.coverage import coverage, drawn
from evaluation.auc import areas
from evaluation.intervals import Clusters
from evaluation.metrics import figures
from evaluation.table import PredictionTable


def test_intervals_hold_the_truth_with_four_correlated_images_a_patient() -> None:
    held = coverage(rounds=50, patients=100, films=4, draws=300, population=100_000)
    for name, share in held.items():
        assert share >= 0.82, name  # 50 rounds: four standard errors below 0.95
    assert np.mean(list(held.values())) > 0.89


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
    figure = figures(table, draws=400)[name]
    return figure.high - figure.low
