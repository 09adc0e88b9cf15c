import numpy as np
import pytest
from scipy import stats

from evaluation.stats.auc import areas, auc, newcombe
from evaluation.stats.clusters import Clusters
from evaluation.stats.estimate import bca, bootstrap, wilson


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (7, 10), (10, 10), (970, 1000)])
def test_wilson_is_scipys(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_bca_of_a_mean_is_scipys() -> None:
    rng = np.random.default_rng(0)
    x = rng.exponential(size=60)
    redrawn = x[rng.integers(0, 60, (20000, 60))].mean(1)
    left_out = (x.sum() - x) / 59
    low, high = bca(x.mean(), redrawn, left_out)
    expected = stats.bootstrap((x,), np.mean, n_resamples=20000, method="BCa", rng=1)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.012)


def test_draws_keep_every_patient_whole_and_never_lose_a_rare_class() -> None:
    of_patient = np.array([0] * 30 + [1] * 20 + [2] * 2)
    patients = np.repeat([f"p{i:02}" for i in range(52)], 4)
    labels = np.repeat(of_patient, 4)
    clusters = Clusters.make(patients, labels)
    ones = clusters.total(np.eye(3)[labels])
    counts = clusters.draws(200, seed=0).astype(int)
    images = counts.T @ ones
    assert np.array_equal(counts.sum(0), np.full(200, 52))
    assert (images[:, 2] == 8).all()
    assert np.std(images[:, 0] / 4) == pytest.approx(np.sqrt(50 * 0.6 * 0.4), rel=0.2)
    assert (images % 4 == 0).all()


def test_the_same_seed_pairs_two_models() -> None:
    clusters = Clusters.make(np.arange(40).astype(str), np.arange(40) % 2)
    sums = np.random.default_rng(0).normal(size=(40, 1))
    one = bootstrap(sums, lambda s: s, clusters, 100)
    other = bootstrap(np.hstack([sums, sums]), lambda s: s, clusters, 100)
    np.testing.assert_allclose(other.redrawn[:, 1:], one.redrawn)


def test_a_patients_films_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(100) < 0.8, 4).astype(float)[:, None]
    labels = np.zeros(400, int)
    widths = []
    for patients in (np.repeat(np.arange(100), 4), np.arange(400)):
        clusters = Clusters.make(patients.astype(str), labels)
        low, high = bootstrap(clusters.total(right) / 400, lambda s: s, clusters).interval(0)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2.0, rel=0.1)  # sqrt(4) by theory


def _delong_by_pairs(scores: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """DeLong's covariance of two areas straight from its definition over all pairs."""
    tens, ones = [], []
    for s in scores.T:
        gap = s[positive][:, None] - s[~positive][None, :]
        kernel = (gap > 0) + 0.5 * (gap == 0)
        tens.append(kernel.mean(1))
        ones.append(kernel.mean(0))
    return np.cov(tens) / positive.sum() + np.cov(ones) / (~positive).sum()


def test_areas_have_delongs_covariance_where_each_patient_has_one_image() -> None:
    rng = np.random.default_rng(3)
    positive = rng.random(80) < 0.4
    scores = np.round(rng.normal(size=(80, 2)) + positive[:, None], 1)  # with ties
    found = areas(scores, np.column_stack([positive] * 2), _single(80))
    np.testing.assert_allclose(found.covariance, _delong_by_pairs(scores, positive), rtol=1e-10)
    assert found.value[0] == pytest.approx(auc(scores[:, 0], positive))


def _single(n: int) -> Clusters:
    return Clusters.make(np.arange(n).astype(str), np.zeros(n, int))


def test_four_equal_films_a_patient_say_no_more_than_one() -> None:
    rng = np.random.default_rng(3)
    positive = rng.random(80) < 0.4
    scores = rng.normal(size=(80, 1)) + positive[:, None]
    one = areas(scores, positive[:, None], _single(80))
    four = Clusters.make(np.repeat(np.arange(80), 4).astype(str), np.zeros(320, int))
    many = areas(np.repeat(scores, 4, 0), np.repeat(positive, 4)[:, None], four)
    assert many.covariance[0, 0] == pytest.approx(one.covariance[0, 0], rel=1e-9)


def test_a_perfect_area_never_has_the_interval_one_to_one() -> None:
    positive = np.arange(40) < 20
    found = areas(positive[:, None].astype(float), positive[:, None], _single(40))
    value, low, high = found.mean(np.array([0]))
    assert (value, high) == (1.0, 1.0)
    assert 0.7 < low < 0.95
    assert newcombe(1.0, 20, 20)[0] == pytest.approx(low)


def test_the_interval_of_an_area_stays_inside_one() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(60) < 30
    scores = rng.normal(size=(60, 1)) + 3.2 * positive[:, None]
    value, low, high = areas(scores, positive[:, None], _single(60)).mean(np.array([0]))
    assert low < value < high < 1.0
