from dataclasses import replace

import numpy as np
import pytest

from evaluation.selective import fit_conformal, fit_referral, risk_coverage
from tests.evaluation.tables import make_table


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
    assert curve.risk_at(0.6) == pytest.approx(1 / 3)
    assert curve.risk_at(1.0) == pytest.approx(1 / 2)


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
    referral = fit_referral(table, 0.05)
    is_confident = referral.is_confident(table.probabilities)
    is_wrong = table.predictions != table.labels
    assert is_wrong[is_confident].mean() <= 0.05
    assert is_confident.mean() == pytest.approx(referral.val_coverage)
    confidence = table.probabilities.max(1)
    next_lower = np.sort(confidence)[~np.sort(is_confident)][-1]
    assert is_wrong[confidence >= next_lower].mean() > 0.05


def test_all_images_are_referred_if_no_threshold_has_the_risk() -> None:
    table = make_table(50, split="val")
    always_wrong = replace(table, logits=np.eye(3)[(table.labels + 1) % 3])
    assert not fit_referral(always_wrong, 0.01).is_confident(always_wrong.probabilities).any()


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
def test_conformal_sets_contain_the_label_as_often_as_guaranteed(alpha: float) -> None:
    coverage = []
    for seed in range(60):
        table = make_table(1000, seed=seed, split="val")
        shuffled = table.take(np.random.default_rng(seed).permutation(1000))
        conformal = fit_conformal(shuffled.take(np.arange(200)), alpha)
        fresh = shuffled.take(np.arange(200, 1000))
        sets = conformal.predict_sets(fresh.probabilities)
        coverage.append(sets[np.arange(800), fresh.labels].mean())
    assert np.mean(coverage) == pytest.approx(1 - alpha, abs=0.012)


def test_too_few_images_give_trivial_sets() -> None:
    table = make_table(18, split="val")
    conformal = fit_conformal(table, 0.05)  # ceil(19 x 0.95) = 19 > 18
    assert conformal.is_trivial
    assert conformal.predict_sets(table.probabilities).all()
    assert not fit_conformal(make_table(19, split="val"), 0.05).is_trivial  # ceil(20 x 0.95) = 19


def test_fitting_on_test_and_invalid_alpha_are_errors() -> None:
    with pytest.raises(ValueError, match="a referral threshold may not be fitted on split 'test'"):
        fit_referral(make_table(), 0.05)
    with pytest.raises(ValueError, match="a conformal threshold may not be fitted on split 'test'"):
        fit_conformal(make_table(), 0.1)
    with pytest.raises(ValueError, match=r"alpha 1\.5 must be between 0 and 1"):
        fit_conformal(make_table(split="val"), 1.5)
