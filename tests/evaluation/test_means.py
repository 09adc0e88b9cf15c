import numpy as np
import pytest

from evaluation.stats.estimate import wilson
from evaluation.stats.means import mean


def people(count: int, films: int = 1) -> np.ndarray:
    return np.repeat([f"p{k}" for k in range(count)], films)


def test_a_share_of_one_image_a_patient_has_wilsons_interval() -> None:
    found = mean(people(10), np.arange(10) < 9)
    assert (found.value, found.low, found.high) == (0.9, *wilson(9, 10))
    assert (found.method, found.n, found.patients) == ("Wilson", 10, 10)


@pytest.mark.parametrize("all_are", [True, False])
def test_where_all_images_agree_a_patient_counts_once(all_are: bool) -> None:
    found = mean(people(5, films=4), np.full(20, all_are))
    assert (found.low, found.high) == wilson(5 * all_are, 5)
    assert (found.value, found.n, found.patients) == (float(all_are), 20, 5)


def test_films_of_a_patient_are_redrawn_together() -> None:
    rng = np.random.default_rng(0)
    truths = np.repeat(rng.random(40) < 0.7, 5)
    one, many = mean(people(200), truths), mean(people(40, films=5), truths)
    assert one.value == many.value
    assert (many.low, many.high) == pytest.approx(wilson(int(truths[::5].sum()), 40), abs=0.03)
    assert many.high - many.low > 1.8 * (one.high - one.low)


def test_numbers_are_no_share() -> None:
    sizes = np.arange(1, 41) % 2
    found = mean(people(40), sizes)
    assert found.value == 0.5
    assert found.method == "patient bootstrap, BCa"
    same = mean(people(40), np.ones(40))
    assert (same.value, same.low) == (1.0, None)
    assert same.reason == "all images agree, or too few redraws have one"


def test_no_image_has_no_mean() -> None:
    found = mean(people(0), np.zeros(0, dtype=bool), "no image is answered")
    assert (found.value, found.n, found.reason) == (None, 0, "no image is answered")


@pytest.mark.parametrize("number", [0.1, 0.3, 1e-7])
def test_equal_numbers_are_equal_though_sums_round(number: float) -> None:
    found = mean(people(50), np.full(50, number))
    assert found.value == pytest.approx(number, rel=1e-12)
    assert (found.low, found.high) == (None, None)
    near = mean(people(50), number + 1e-5 * number * (np.arange(50) % 2))
    assert near.low < near.value < near.high
