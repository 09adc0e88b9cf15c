import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from evaluation.metrics.calibration import (
    Calibration,
    fit_calibration,
    fit_referral,
    fit_temperature,
    nll,
    reliability_bins,
    risk_coverage,
)
from evaluation.predictions import PredictionTable
from tests.evaluation.tables import make_table


def calibrated_table(n: int, temperature: float, seed: int) -> PredictionTable:
    """Labels drawn from the softmax of the logits, and then logits x temperature."""
    table = make_table(n, seed=seed, gain=0, split="val")
    logits = 2 * table.logits
    p = replace(table, logits=logits).probabilities
    draw = np.random.default_rng(seed).random((n, 1))
    label = (p.cumsum(1) < draw).sum(1).clip(0, 2)
    return replace(table, logits=logits * temperature, rows=table.rows.assign(label=label))


@pytest.mark.parametrize("planted", [0.5, 1.0, 1.7, 3.0])
def test_planted_temperature_is_recovered(planted: float) -> None:
    table = calibrated_table(20000, planted, 3)
    temperature = fit_temperature(table)
    assert temperature.temperature == pytest.approx(planted, abs=0.1)
    assert not temperature.at_bound
    bins = reliability_bins(temperature(table.probabilities), table.labels)
    assert bins.ece < 0.015


def test_fitted_temperature_has_the_smallest_nll() -> None:
    table = calibrated_table(500, 2.0, 5)

    def nll(value: float) -> float:
        p = Calibration(value)(table.probabilities)
        return float(-np.log(p[np.arange(500), table.labels]).mean())

    best = fit_temperature(table).temperature
    assert nll(best) < min(nll(best * 1.05), nll(best / 1.05))


def test_temperature_one_changes_nothing_and_no_temperature_changes_predictions() -> None:
    p = make_table().probabilities
    assert np.array_equal(Calibration()(p), p)
    assert np.array_equal(Calibration(3.0)(p).argmax(1), p.argmax(1))


@pytest.mark.parametrize("n", [60, 600])
def test_table_without_errors_is_fitted_as_if_one_more_image_were_wrong(n: int) -> None:
    table = make_table(n, split="val")
    perfect = replace(table, logits=2 * np.eye(3)[table.labels])
    temperature = fit_temperature(perfect)
    assert not temperature.at_bound
    assert 1 - temperature(perfect.probabilities).max(1) == pytest.approx(1 / (n + 1))


def test_temperature_outside_its_range_is_clipped_with_a_warning() -> None:
    table = make_table(split="val")
    unconfident = replace(table, logits=0.01 * np.eye(3)[table.labels])
    with pytest.warns(UserWarning, match=r"it is at its bound 0\.05"):
        assert fit_temperature(unconfident).at_bound


def test_fitting_a_temperature_on_test_is_an_error() -> None:
    with pytest.raises(ValueError, match="a temperature may not be fitted on split 'test'"):
        fit_temperature(make_table())


DISTORTION = np.array([0.4, 1.0, 1.8]), np.array([0.5, 0.0, -0.7])  # scales and biases


def distorted(table: PredictionTable) -> PredictionTable:
    """The table with log-probabilities times a scale of each class plus a bias of each class."""
    scales, biases = DISTORTION
    return replace(table, logits=table.log_probabilities * scales + biases)


def mean_nll(table: PredictionTable, calibration: Calibration) -> float:
    return float(nll(table.with_probabilities(calibration(table.probabilities))).mean())


def test_a_planted_distortion_of_classes_is_chosen_and_repaired() -> None:
    val, fresh = (calibrated_table(n, 1.0, seed) for n, seed in ((1000, 3), (20000, 4)))
    calibration = fit_calibration(distorted(val), "auto")
    assert calibration.gain is not None
    assert calibration.gain > calibration.gain_error > 0
    before, ideal = mean_nll(distorted(fresh), fit_temperature(distorted(val))), nll(fresh).mean()
    assert before > ideal + 0.05
    assert mean_nll(distorted(fresh), calibration) < ideal + 0.01
    assert "A scale and a bias of each class" in calibration.describe()
    assert f"is {calibration.gain:.4f} lower than that of a temp" in calibration.describe()
    changed = calibration(distorted(fresh).probabilities).argmax(1) != distorted(fresh).predictions
    assert changed.any()


def test_by_default_no_decision_changes_but_the_gain_of_vector_scaling_is_stated() -> None:
    val, fresh = (distorted(calibrated_table(1000, 1.0, seed)) for seed in (3, 4))
    calibration = fit_calibration(val)
    assert calibration.temperature == fit_temperature(val).temperature
    assert np.array_equal(calibration(fresh.probabilities).argmax(1), fresh.predictions)
    assert calibration.gain == fit_calibration(val, "auto").gain
    assert "is fitted with calibration: auto only" in calibration.describe()


@pytest.mark.parametrize("n", [100, 1000])
def test_a_model_that_is_only_tempered_keeps_its_temperature(n: int) -> None:
    tables = [calibrated_table(n, 2.0, seed) for seed in range(20)]
    fits = [fit_calibration(table, "auto") for table in tables]
    kept = [(fit, table) for fit, table in zip(fits, tables, strict=True) if not fit.scales]
    assert len(kept) >= 19
    for fit, table in kept:
        assert fit.temperature == fit_temperature(table).temperature
        assert fit.describe().startswith(f"Temperature {fit.temperature:.3f}, fitted on validation")


def test_vector_scaling_of_two_classes_is_a_regression_on_both_log_probabilities() -> None:
    logits, rng = np.random.default_rng(0).normal(size=4000) * 2, np.random.default_rng(1)
    table = make_table(4000, 2, split="val")
    logits = np.stack([np.zeros(4000), logits], axis=1)
    table = replace(table, logits=logits)
    logs = table.log_probabilities
    true = expit(1.5 * logs[:, 1] - 0.5 * logs[:, 0] + 0.5)
    table = replace(table, rows=table.rows.assign(label=(rng.random(4000) < true).astype(int)))
    fitted = fit_calibration(table, "auto")
    np.testing.assert_allclose(fitted(table.probabilities)[:, 1], true, atol=0.04)
    features = logs * [-1, 1]
    expected = LogisticRegression(C=1e6, tol=1e-8).fit(features, table.labels)
    p = expected.predict_proba(features)
    np.testing.assert_allclose(fitted(table.probabilities), p, atol=5e-3)


def test_folds_are_of_patients_and_do_not_depend_on_the_order_of_rows() -> None:
    table = make_table(90, images_per_patient=3)
    folds = table.patient_folds(5)
    assert np.bincount(folds).tolist() == [18] * 5
    assert all(len(set(folds[table.patients == patient])) == 1 for patient in table.patients)
    order = np.random.default_rng(0).permutation(90)
    assert np.array_equal(table.take(order).patient_folds(5), folds[order])


def test_images_that_repeat_within_patients_are_no_evidence_for_vector_scaling() -> None:
    """30 copies of an image in folds of images would be in the fit and in the held-out rows."""
    chosen = {"patients": 0, "images": 0}
    for seed in range(10):
        few = calibrated_table(40, 2.0, seed)
        repeated, ids = np.repeat(np.arange(40), 30), [f"image{i}" for i in range(1200)]
        rows = few.rows.iloc[repeated].assign(id=ids)
        table = replace(few, rows=rows, logits=few.logits[repeated])
        by_image = replace(table, rows=table.rows.assign(patient=ids))
        chosen["patients"] += bool(fit_calibration(table, "auto").scales)
        chosen["images"] += bool(fit_calibration(by_image, "auto").scales)
    assert chosen["patients"] <= 3
    assert chosen["images"] >= 8


def test_neither_calibration_is_fitted_on_test_nor_compared_on_few_patients() -> None:
    with pytest.raises(ValueError, match="may not be fitted on split 'test'"):
        fit_calibration(make_table())
    few = make_table(40, images_per_patient=10, split="val")
    assert fit_calibration(few, "auto") == fit_temperature(few)
    assert fit_calibration(few, "auto").describe().endswith("fitted on validation")


def test_confidence_of_one_is_in_the_last_bin() -> None:
    p = np.tile([1.0, 0.0], (30, 1))
    labels = np.array([0] * 24 + [1] * 6)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reliability_bins(p, labels).ece == pytest.approx(0.2)


def probabilities_and_labels(
    confidence: list[float], correct: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    p = np.array([[c, 1 - c] for c in confidence])
    return p, 1 - np.array(correct)


def test_risk_and_coverage_as_computed_by_hand() -> None:
    p, labels = probabilities_and_labels([0.95, 0.9, 0.8, 0.7], [1, 0, 1, 0])
    curve = risk_coverage(p, labels)
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)


def test_images_of_equal_confidence_are_included_together_in_any_order() -> None:
    p, labels = probabilities_and_labels([0.9, 0.9, 0.9, 0.6], [1, 0, 0, 1])
    curve = risk_coverage(p, labels)
    np.testing.assert_allclose(curve.coverage, [0.75, 1.0])
    permuted = risk_coverage(p[[2, 1, 3, 0]], labels[[2, 1, 3, 0]])
    assert permuted.aurc == curve.aurc == pytest.approx(0.75 * 2 / 3 + 0.25 * 0.5)


def test_perfect_ranking_of_errors_has_the_smallest_area() -> None:
    table = make_table(300)
    is_wrong = table.predictions != table.labels
    ideal = np.where(is_wrong, 0.6, 0.9) - np.arange(300) * 1e-6
    p, labels = probabilities_and_labels(list(ideal), list(~is_wrong))
    assert risk_coverage(p, labels).aurc < risk_coverage(table.probabilities, table.labels).aurc


def test_referral_threshold_is_the_lowest_with_the_risk_on_val() -> None:
    table = make_table(500, split="val")
    is_confident = table.probabilities.max(1) >= fit_referral(table, 0.05)
    is_wrong = table.predictions != table.labels
    assert is_wrong[is_confident].mean() <= 0.05
    confidence = table.probabilities.max(1)
    next_lower = np.sort(confidence)[~np.sort(is_confident)][-1]
    assert is_wrong[confidence >= next_lower].mean() > 0.05


def test_all_images_are_referred_if_no_threshold_has_the_risk() -> None:
    table = make_table(50, split="val")
    always_wrong = replace(table, logits=np.eye(3)[(table.labels + 1) % 3])
    assert fit_referral(always_wrong, 0.01) > 1


def test_a_referral_threshold_is_not_fitted_on_test() -> None:
    with pytest.raises(ValueError, match="a referral threshold may not be fitted on split 'test'"):
        fit_referral(make_table(), 0.05)
