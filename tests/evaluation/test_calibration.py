import warnings
from dataclasses import replace

import numpy as np
import pytest

from evaluation.metrics.calibration import (
    Temperature,
    fit_referral,
    fit_temperature,
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
    assert temperature.value == pytest.approx(planted, abs=0.1)
    assert not temperature.at_bound
    bins = reliability_bins(temperature(table.probabilities), table.labels)
    assert bins.ece < 0.015


def test_fitted_temperature_has_the_smallest_nll() -> None:
    table = calibrated_table(500, 2.0, 5)

    def nll(value: float) -> float:
        p = Temperature(value)(table.probabilities)
        return float(-np.log(p[np.arange(500), table.labels]).mean())

    best = fit_temperature(table).value
    assert nll(best) < min(nll(best * 1.05), nll(best / 1.05))


def test_temperature_one_changes_nothing_and_no_temperature_changes_predictions() -> None:
    p = make_table().probabilities
    assert np.array_equal(Temperature()(p), p)
    assert np.array_equal(Temperature(3.0)(p).argmax(1), p.argmax(1))


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
