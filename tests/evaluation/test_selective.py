from dataclasses import replace

import numpy as np
import pytest

from evaluation.selective import fit_conformal, fit_referral, risk_coverage
from tests.evaluation.tables import make


def _table(confidence: list[float], right: list[int]) -> tuple[np.ndarray, np.ndarray]:
    p = np.array([[c, 1 - c] for c in confidence])
    return p, 1 - np.array(right)


def test_risk_and_coverage_by_hand() -> None:
    p, labels = _table([0.95, 0.9, 0.8, 0.7], [1, 0, 1, 0])
    curve = risk_coverage(p, labels)
    np.testing.assert_allclose(curve.coverage, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(curve.risk, [0, 1 / 2, 1 / 3, 1 / 2])
    assert curve.aurc == pytest.approx((0 + 1 / 2 + 1 / 3 + 1 / 2) / 4)
    assert curve.at(0.6) == pytest.approx(1 / 3)
    assert curve.at(1.0) == pytest.approx(1 / 2)


def test_equal_confidences_are_answered_together_in_any_order() -> None:
    p, labels = _table([0.9, 0.9, 0.9, 0.6], [1, 0, 0, 1])
    curve = risk_coverage(p, labels)
    np.testing.assert_allclose(curve.coverage, [0.75, 1.0])
    turned = risk_coverage(p[[2, 1, 3, 0]], labels[[2, 1, 3, 0]])
    assert turned.aurc == curve.aurc == pytest.approx(0.75 * 2 / 3 + 0.25 * 0.5)


def test_a_perfect_ranking_of_errors_has_the_least_area() -> None:
    table = make(300)
    wrong = table.logits.argmax(1) != table.labels
    ideal = np.where(wrong, 0.6, 0.9) - np.arange(300) * 1e-6
    p, labels = _table(list(ideal), list(~wrong))
    assert risk_coverage(p, labels).aurc < risk_coverage(table.probabilities, table.labels).aurc


def test_a_referral_threshold_holds_its_risk_on_validation() -> None:
    table = make(500, split="val")
    found = fit_referral(table, 0.05)
    answered = found.answered(table.probabilities)
    wrong = table.logits.argmax(1) != table.labels
    assert wrong[answered].mean() <= 0.05
    assert answered.mean() == pytest.approx(found.coverage_on_val)
    lower = (
        table.probabilities.max(1) >= np.sort(table.probabilities.max(1))[~np.sort(answered)][-1]
    )
    assert wrong[lower].mean() > 0.05


def test_where_no_risk_is_low_enough_all_are_referred() -> None:
    table = make(50, split="val")
    always_wrong = replace(table, logits=np.eye(3)[(table.labels + 1) % 3])
    assert not fit_referral(always_wrong, 0.01).answered(always_wrong.probabilities).any()


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
def test_conformal_sets_hold_the_label_as_often_as_promised(alpha: float) -> None:
    held = []
    for seed in range(60):
        both = make(1000, seed=seed, split="val")
        mixed = both.take(np.random.default_rng(seed).permutation(1000))
        limit = fit_conformal(mixed.take(np.arange(200)), alpha)
        fresh = mixed.take(np.arange(200, 1000))
        held.append(limit.sets(fresh.probabilities)[np.arange(800), fresh.labels].mean())
    assert np.mean(held) == pytest.approx(1 - alpha, abs=0.012)


def test_too_few_images_give_whole_sets_and_say_so() -> None:
    table = make(18, split="val")
    found = fit_conformal(table, 0.05)  # ceil(19 x 0.95) = 19 > 18
    assert found.whole
    assert found.sets(table.probabilities).all()
    assert not fit_conformal(make(19, split="val"), 0.05).whole  # ceil(20 x 0.95) = 19


def test_nothing_is_fitted_on_test() -> None:
    with pytest.raises(ValueError, match="a referral threshold may not be fitted on split 'test'"):
        fit_referral(make(), 0.05)
    with pytest.raises(ValueError, match="a conformal limit may not be fitted on split 'test'"):
        fit_conformal(make(), 0.1)
    with pytest.raises(ValueError, match=r"alpha 1\.5 must lie between 0 and 1"):
        fit_conformal(make(split="val"), 1.5)
