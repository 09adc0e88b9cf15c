import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from evaluation.stats.auc import auc, delong, newcombe_interval
from evaluation.stats.bootstrap import Clusters


def delong_covariance_by_pairs(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """DeLong's covariance of two areas from its definition over all pairs of images."""
    of_positives, of_negatives = [], []
    for s in scores.T:
        gap = s[positive][:, None] - s[~positive][None, :]
        kernel = (gap > 0) + 0.5 * (gap == 0)
        of_positives.append(kernel.mean(1))
        of_negatives.append(kernel.mean(0))
    return np.cov(of_positives) / positive.sum() + np.cov(of_negatives) / (~positive).sum()


def one_image_each(n: int) -> Clusters:
    return Clusters.from_patients(np.arange(n).astype(str), np.zeros(n, int))


def test_auc_equals_scikit_learn_with_ties() -> None:
    rng = np.random.default_rng(1)
    labels, scores = rng.integers(0, 3, 90), np.round(rng.normal(size=(90, 3)), 1)
    expected = [roc_auc_score(labels == c, scores[:, c]) for c in range(3)]
    assert [auc(scores[:, c], labels == c) for c in range(scores.shape[1])] == pytest.approx(
        expected
    )
    assert np.isnan(auc(scores[:, 0], np.ones(90, bool)))


def test_covariance_is_delongs_with_one_image_a_patient() -> None:
    rng = np.random.default_rng(3)
    positive = rng.random(80) < 0.4
    scores = np.round(rng.normal(size=(80, 2)) + positive[:, None], 1)  # with ties
    areas = delong(scores, np.column_stack([positive] * 2), one_image_each(80))
    expected = delong_covariance_by_pairs(scores, positive)
    np.testing.assert_allclose(areas.covariance, expected, rtol=1e-10)
    assert areas.value[0] == pytest.approx(auc(scores[:, 0], positive))


def test_four_equal_images_a_patient_have_the_variance_of_one() -> None:
    rng = np.random.default_rng(3)
    positive = rng.random(80) < 0.4
    scores = rng.normal(size=(80, 1)) + positive[:, None]
    one = delong(scores, positive[:, None], one_image_each(80))
    clusters = Clusters.from_patients(np.repeat(np.arange(80), 4).astype(str), np.zeros(320, int))
    four = delong(np.repeat(scores, 4, 0), np.repeat(positive, 4)[:, None], clusters)
    assert four.covariance[0, 0] == pytest.approx(one.covariance[0, 0], rel=1e-9)


def test_perfect_area_has_newcombes_interval() -> None:
    positive = np.arange(40) < 20
    areas = delong(positive[:, None].astype(float), positive[:, None], one_image_each(40))
    value, low, high = areas.mean(np.array([0]))
    assert (value, high) == (1.0, 1.0)
    assert 0.7 < low < 0.95
    assert newcombe_interval(1.0, 20, 20)[0] == pytest.approx(low)


def test_a_perfect_class_widens_the_interval_of_the_mean() -> None:
    """The mean with one perfect class of two is as uncertain as the two classes are."""
    rng = np.random.default_rng(0)
    labels = np.arange(60) % 2
    scores = np.stack([labels + rng.normal(0, 0.7, 60), labels + 0.0], axis=1)
    areas = delong(scores, np.stack([labels == 1] * 2, axis=1), one_image_each(60))
    assert areas.is_constant(np.arange(2)).tolist() == [False, True]
    (first, low_first, _), (_, low_perfect, _) = (areas.mean(np.array([k])) for k in (0, 1))
    value, low, high = areas.mean(np.arange(2))
    assert value == (first + 1) / 2
    assert low < (first + low_perfect) / 2
    assert low > (low_first + low_perfect) / 2 - 0.02
    assert value < high <= 1


def test_interval_of_an_area_is_below_one() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(60) < 30
    scores = rng.normal(size=(60, 1)) + 3.2 * positive[:, None]
    value, low, high = delong(scores, positive[:, None], one_image_each(60)).mean(np.array([0]))
    assert low < value < high < 1.0
