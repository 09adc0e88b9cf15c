"""Slope, intercept and curve against an independent regression and planted miscalibration."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit, logit
from scipy.stats import t as student

from evaluation.metrics.calibration_slope import (
    ABSENT,
    SEPARATED,
    calibration_curve,
    calibration_values,
    logistic_intercept,
    logistic_line,
)
from evaluation.metrics.compute import compute_metrics
from evaluation.plots.clinical import calibration_plot
from evaluation.predictions import PredictionTable
from evaluation.stats.bootstrap import Clusters
from tests.evaluation.tables import make_table

NAMES = ("calibration_slope", "calibration_intercept", "calibration_in_the_large")


def binary_table(
    n: int, slope: float, shift: float, seed: int = 0, images: int = 1
) -> PredictionTable:
    """Outcomes drawn at the logits z; the model states `(z - shift) / slope`."""
    rng = np.random.default_rng(seed)
    z = rng.normal(-0.5, 1.5, n)
    labels = (rng.random(n) < expit(z)).astype(int)
    rows = make_table(n, 2, images_per_patient=images).rows.assign(label=labels)
    logits = np.stack([np.zeros(n), (z - shift) / slope], axis=1)
    return PredictionTable(rows, logits, ["no", "yes"])


def regress(
    design: np.ndarray, y: np.ndarray, patients: np.ndarray, offset: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Iteratively reweighted least squares, and the sandwich summed patient by patient."""
    beta = np.zeros(design.shape[1])
    for _ in range(60):
        mean = expit(offset + design @ beta)
        weight = np.sqrt(mean * (1 - mean))
        working = design @ beta + (y - mean) / weight**2
        beta = np.linalg.lstsq(design * weight[:, None], working * weight, rcond=None)[0]
    mean = expit(offset + design @ beta)
    bread = np.linalg.inv((design * (mean * (1 - mean))[:, None]).T @ design)
    groups = pd.DataFrame(design * (y - mean)[:, None]).groupby(patients).sum().to_numpy()
    meat, n = sum(np.outer(g, g) for g in groups), len(groups)
    return beta, np.sqrt(np.diag(bread @ meat @ bread) * n / (n - 1))


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("classes", [2, 4])
def test_slope_and_intercepts_equal_an_independent_regression(classes: int, images: int) -> None:
    table = make_table(400, classes, gain=1.0, images_per_patient=images)
    groups = {"severe": ["comminuted", "other"]} if classes == 4 else {}
    table = replace(table, meta={"clinical_use": {"class_groups": groups}})
    metrics, ones = compute_metrics(table, draws=20), np.ones((400, 1))
    outcomes = {name: [c] for c, name in enumerate(table.class_names)}
    for outcome, members in (outcomes | {name: [2, 3] for name in groups}).items():
        p, y = table.probabilities[:, members].sum(1), np.isin(table.labels, members)
        x, nothing = logit(p), np.zeros(400)
        line, line_errors = regress(np.hstack([x[:, None], ones]), y, table.patients, nothing)
        large, large_error = regress(ones, y, table.patients, x)
        values, errors = [*line, *large], [*line_errors, *large_error]
        widths = []
        for name, value, error in zip(NAMES, values, errors, strict=True):
            estimate = metrics[f"{name}/{outcome}"]
            assert estimate.value == pytest.approx(value, abs=1e-9), name
            widths.append((estimate.high - estimate.low) / 2 / error)
            assert estimate.high - estimate.value == pytest.approx(estimate.value - estimate.low)
        patients = min(len(set(table.patients[y])), len(set(table.patients[~y])))
        quantile = student.ppf(0.975, patients - 1)
        assert widths == pytest.approx([quantile] * 3, rel=1e-8)


def test_one_confident_error_among_many_images_does_not_stop_the_regression() -> None:
    x = np.concatenate([np.full(50_000, -10.0), np.full(50_000, 10.0), [-20.0]])
    positive = x > 0
    positive[-1] = True
    clusters = Clusters(np.arange(len(x)), np.full(len(x), -1))
    (slope, intercept), errors = logistic_line(x, positive, clusters)
    residuals = positive - expit(slope * x + intercept)
    assert [residuals.sum(), (residuals * x).sum()] == pytest.approx([0, 0], abs=1e-6)
    assert slope > 0
    assert np.isfinite(errors).all()


@pytest.mark.parametrize("slope", [0.5, 1.0, 2.0])
def test_planted_slope_and_shift_are_found(slope: float) -> None:
    table = binary_table(20_000, slope, shift=0.7)
    metrics = compute_metrics(table, draws=20)
    line = [metrics[f"{name}/yes"] for name in NAMES[:2]]
    for estimate, planted in zip(line, (slope, 0.7), strict=True):
        assert estimate.low < planted < estimate.high
        assert estimate.high - estimate.low < 0.15


def test_calibration_in_the_large_is_the_shift_of_the_logits() -> None:
    table = binary_table(20_000, 1.0, shift=0.7)
    estimate = compute_metrics(table, draws=20)["calibration_in_the_large/yes"]
    assert estimate.low < 0.7 < estimate.high
    other = compute_metrics(table, draws=20)["calibration_in_the_large/no"]
    assert other.value == pytest.approx(-estimate.value, abs=1e-9)


def test_logits_times_two_halve_the_slope_and_leave_the_intercept() -> None:
    table = binary_table(300, 1.0, 0.3)
    once, twice = (
        compute_metrics(replace(table, logits=factor * table.logits), draws=20)
        for factor in (1.0, 2.0)
    )
    for name, factor in zip(NAMES[:2], (2, 1), strict=True):
        one, two = once[f"{name}/yes"], twice[f"{name}/yes"]
        assert factor * two.value == pytest.approx(one.value, abs=1e-9)
        assert factor * two.low == pytest.approx(one.low, abs=1e-8)


def test_extreme_probabilities_and_wrong_labels_have_a_value() -> None:
    table = binary_table(300, 0.01, 0.0)  # logits of some hundreds
    metrics = compute_metrics(table, draws=20)
    assert metrics["calibration_slope/yes"].value == pytest.approx(0.01, rel=0.3)
    assert metrics["calibration_in_the_large/yes"].value is not None


@pytest.mark.parametrize("separated", [True, False])
def test_separated_and_constant_probabilities_have_no_slope(separated: bool) -> None:
    table = binary_table(60, 1.0, 0.0)
    second = np.where(table.labels == 1, 1.0, -1.0) if separated else np.zeros(60)
    table = replace(table, logits=np.stack([np.zeros(60), second], axis=1))
    metrics = compute_metrics(table, draws=20)
    for name in NAMES[:2]:
        assert metrics[f"{name}/yes"].value is None
        assert metrics[f"{name}/yes"].reason == SEPARATED
    assert metrics["calibration_in_the_large/yes"].value is not None


def test_few_patients_give_a_value_without_an_interval() -> None:
    table = make_table(40, 2, gain=0.5)
    rows = table.rows.assign(label=[1, 1, 1] + [0] * 37)
    estimate = compute_metrics(replace(table, rows=rows), draws=20)["calibration_slope/simple"]
    assert estimate.value is not None
    assert estimate.low is None
    assert estimate.reason == "class 'simple' has 3 patients; an interval needs 5"


def test_ece_of_each_class_averages_to_the_classwise_one() -> None:
    table = make_table(300, 3)
    metrics = compute_metrics(table, draws=50)
    of_class = [metrics[f"ece_classwise/{name}"] for name in table.class_names]
    mean = np.mean([e.value for e in of_class])
    assert metrics["ece_classwise"].value == pytest.approx(mean, abs=1e-12)
    assert len({round(e.value, 6) for e in of_class}) == 3
    assert all(e.low <= e.value <= e.high for e in of_class)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_the_curve_is_the_diagonal_only_of_calibrated_probabilities(shift: float) -> None:
    table = binary_table(8000, 1.0, shift, images=4)
    curve = calibration_curve(table, "yes", draws=200)
    true = expit(logit(curve.x) + shift)
    assert np.abs(curve.value - true).max() < 0.05
    assert np.mean((curve.low <= true) & (true <= curve.high)) > 0.8
    assert (curve.low <= curve.value).all()
    assert (curve.value <= curve.high).all()
    is_on_diagonal = (curve.low <= curve.x) & (curve.x <= curve.high)
    assert is_on_diagonal.mean() > 0.8 if shift == 0 else is_on_diagonal.mean() < 0.3


def test_a_curve_needs_images_of_both_kinds_and_several_probabilities() -> None:
    table = binary_table(60, 1.0, 0.0)
    only = table.take(np.flatnonzero(table.labels == 1))
    assert calibration_curve(only, "yes", draws=20) is None
    assert calibration_curve(replace(table, logits=np.zeros((60, 2))), "yes", draws=20) is None
    [text] = [t for t in calibration_plot(only, ["yes"]).axes[0].texts if t.get_text() == ABSENT]
    assert text


def test_histograms_show_all_images_of_both_kinds() -> None:
    table = binary_table(400, 1.0, 0.0)
    below = calibration_plot(table, ["yes"]).axes[1]
    heights = np.concatenate([patch.get_data().values for patch in below.patches])
    assert heights[heights > 0].sum() == pytest.approx(100)
    assert heights[heights < 0].sum() == pytest.approx(-100)


def test_logits_that_differ_by_rounding_only_have_no_slope() -> None:
    x = np.array([0.1, 0.1, np.nextafter(0.1, 1), np.nextafter(0.1, 1)])
    slope, intercept, in_the_large = calibration_values(x, np.array([0, 1, 0, 1], bool))
    assert np.isnan([slope, intercept]).all()
    assert in_the_large == pytest.approx(-0.1)


def test_extremely_confident_logits_have_an_intercept() -> None:
    x = np.array([143.29490181, 29.15889783, -36.82665063, 103.66711423, 176.68067371,
                  111.60437516, -9.92310268, -89.03030598, 77.87189405, -70.07137376])  # fmt: skip
    positive = np.array([1, 1, 1, 1, 1, 0, 1, 0, 1, 0], bool)
    clusters = Clusters.from_patients(np.arange(10).astype(str), np.zeros(10, int))
    value, _ = logistic_intercept(x, positive, clusters)
    assert expit(x + value).sum() == pytest.approx(7, abs=1e-9)
