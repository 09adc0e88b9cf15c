import numpy as np
import pytest
from scipy import stats

from evaluation.stats.bootstrap import Clusters, bca, bootstrap


def test_bca_interval_of_a_mean_equals_scipy() -> None:
    rng = np.random.default_rng(0)
    x = rng.exponential(size=60)
    resampled = x[rng.integers(0, 60, (20000, 60))].mean(1)
    left_out = (x.sum() - x) / 59
    low, high = bca(x.mean(), resampled, left_out)
    expected = stats.bootstrap((x,), np.mean, n_resamples=20000, method="BCa", rng=1)
    assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.012)


def test_resamples_contain_whole_patients_and_every_rare_class() -> None:
    class_of_patient = np.array([0] * 30 + [1] * 20 + [2] * 2)
    patients = np.repeat([f"p{i:02}" for i in range(52)], 4)
    labels = np.repeat(class_of_patient, 4)
    clusters = Clusters.from_patients(patients, labels)
    images_of_class = clusters.sum_by_patient(np.eye(3)[labels])
    counts = clusters.resample_counts(200, seed=0).astype(int)
    images = counts.T @ images_of_class
    assert np.array_equal(counts.sum(0), np.full(200, 52))
    assert (images[:, 2] == 8).all()
    assert np.std(images[:, 0] / 4) == pytest.approx(np.sqrt(50 * 0.6 * 0.4), rel=0.2)
    assert (images % 4 == 0).all()


def test_resamples_with_the_same_seed_pair_two_models() -> None:
    clusters = Clusters.from_patients(np.arange(40).astype(str), np.arange(40) % 2)
    sums = np.random.default_rng(0).normal(size=(40, 1))
    one = bootstrap(sums, lambda s: s, clusters, 100)
    both = bootstrap(np.hstack([sums, sums]), lambda s: s, clusters, 100)
    other = bootstrap(sums, lambda s: s, clusters, 100, seed=1)
    rounding = 1e-5 * np.abs(sums).sum()  # of sums in float32, whose order depends on the matrix
    for same in (both.resampled[:, :1], both.resampled[:, 1:]):
        np.testing.assert_allclose(same, one.resampled, rtol=0, atol=rounding)
    is_close = np.isclose(other.resampled, one.resampled, rtol=0, atol=rounding)
    assert is_close.mean() < 0.05  # so other resamples would be noticed


def test_several_images_a_patient_widen_the_interval() -> None:
    rng = np.random.default_rng(0)
    correct = np.repeat(rng.random(100) < 0.8, 4).astype(float)[:, None]
    labels = np.zeros(400, int)
    widths = []
    for patients in (np.repeat(np.arange(100), 4), np.arange(400)):
        clusters = Clusters.from_patients(patients.astype(str), labels)
        sums = clusters.sum_by_patient(correct) / 400
        low, high = bootstrap(sums, lambda s: s, clusters).bca_interval(0)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2.0, rel=0.1)  # sqrt(4) by theory


def test_statistic_without_spread_has_no_interval() -> None:
    clusters = Clusters.from_patients(np.arange(20).astype(str), np.zeros(20, int))
    replicates = bootstrap(np.ones((20, 1)), lambda s: s / 20, clusters, 50)
    assert replicates.has_no_spread(0)
    assert not replicates.is_undefined(0)
    assert np.isnan([*replicates.bca_interval(0), *replicates.percentile_interval(0)]).all()
