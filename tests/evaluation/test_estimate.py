import numpy as np
import pytest
from scipy import stats

from evaluation.stats.estimate import mean_estimate, ratio_estimate, wilson_interval


def patients(count: int, images: int = 1) -> np.ndarray:
    return np.repeat([f"p{k}" for k in range(count)], images)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (7, 10), (10, 10), (970, 1000)])
def test_wilson_interval_equals_scipy(hits: int, n: int) -> None:
    expected = stats.binomtest(hits, n).proportion_ci(method="wilson")
    assert wilson_interval(hits, n) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_proportion_with_one_image_a_patient_has_wilson_interval() -> None:
    estimate = mean_estimate(patients(10), np.arange(10) < 9)
    assert (estimate.value, estimate.low, estimate.high) == (0.9, *wilson_interval(9, 10))
    assert (estimate.method, estimate.n, estimate.patients) == ("Wilson", 10, 10)


@pytest.mark.parametrize("value", [True, False])
def test_each_patient_counts_once_if_all_images_agree(value: bool) -> None:
    estimate = mean_estimate(patients(5, images=4), np.full(20, value))
    assert (estimate.low, estimate.high) == wilson_interval(5 * value, 5)
    assert (estimate.value, estimate.n, estimate.patients) == (float(value), 20, 5)
    assert estimate.method == "Wilson, by patients"


def test_images_of_a_patient_are_resampled_together() -> None:
    rng = np.random.default_rng(0)
    values = np.repeat(rng.random(40) < 0.7, 5)
    single = mean_estimate(patients(200), values)
    clustered = mean_estimate(patients(40, images=5), values)
    assert single.value == clustered.value
    expected = wilson_interval(int(values[::5].sum()), 40)
    assert (clustered.low, clustered.high) == pytest.approx(expected, abs=0.03)
    assert clustered.high - clustered.low > 1.8 * (single.high - single.low)


def test_mean_of_numbers_is_resampled_and_is_no_proportion() -> None:
    estimate = mean_estimate(patients(40), np.arange(1, 41) % 2)
    assert estimate.value == 0.5
    assert estimate.method == "bootstrap over patients, BCa"
    constant = mean_estimate(patients(40), np.ones(40))
    assert (constant.value, constant.low) == (1.0, None)
    assert constant.reason == "too few resamples have a value, or all have the same"


def test_mean_of_no_image_has_a_reason() -> None:
    estimate = mean_estimate(patients(0), np.zeros(0, dtype=bool), "no image is answered")
    assert (estimate.value, estimate.n, estimate.reason) == (None, 0, "no image is answered")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("values", [np.array([0.2, 0.6]), np.array([True, False]), np.ones(1)])
def test_mean_of_one_patient_has_no_interval_and_a_reason(values: np.ndarray) -> None:
    estimate = mean_estimate(patients(1, images=len(values)), values)
    assert (estimate.value, estimate.low, estimate.high) == (values.mean(), None, None)
    assert (estimate.n, estimate.patients) == (len(values), 1)
    assert estimate.reason == "an interval needs more than one patient"


@pytest.mark.parametrize("number", [0.1, 0.3, 1e-7])
def test_equal_numbers_have_no_interval_in_spite_of_rounding(number: float) -> None:
    estimate = mean_estimate(patients(50), np.full(50, number))
    assert estimate.value == pytest.approx(number, rel=1e-12)
    assert (estimate.low, estimate.high) == (None, None)
    similar = mean_estimate(patients(50), number + 1e-5 * number * (np.arange(50) % 2))
    assert similar.low < similar.value < similar.high


def test_ratio_is_the_median_of_pairs_with_an_interval() -> None:
    estimate = ratio_estimate([(2.0, 4.0)] * 7)
    assert (estimate.value, estimate.low, estimate.high, estimate.n) == (0.5, 0.5, 0.5, 7)
    estimate = ratio_estimate([(1.0, 1.0), (3.0, 1.0), (2.0, 1.0)])
    assert (estimate.low, estimate.value, estimate.high) == (1.0, 2.0, 3.0)
    assert ratio_estimate([]).reason == "no pair was measured"
