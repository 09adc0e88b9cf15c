import numpy as np
import pytest

from evaluation import saliency as faith
from evaluation.saliency import Measured


def spot(y, x, shape=(40, 60)):
    heat = np.zeros(shape)
    heat[y, x] = 1
    return heat


def test_a_box_is_read_and_nonsense_refused():
    assert faith.box_of("3,4,10,12") == (3, 4, 10, 12)
    assert faith.box_of("") is None
    with pytest.raises(ValueError, match="box is '3,4,10'"):
        faith.box_of("3,4,10")


def test_the_box_grows_by_a_share_of_the_long_side():
    inside = faith.grown((10, 10, 20, 20), (40, 60), by=0.05)
    assert inside.sum() == 16 * 16  # 3 pixels on every side
    assert inside[7, 7]
    assert not inside[6, 7]
    assert faith.grown((10, 10, 20, 20), (40, 60), by=0).sum() == 100


def test_pointing_by_the_peak_alone():
    inside = faith.grown((10, 10, 20, 20), (40, 60), by=0)
    assert faith.points_into(spot(10, 19) + 0.5 * spot(30, 30), inside)
    assert not faith.points_into(spot(10, 20), inside)
    assert not faith.points_into(np.zeros((40, 60)), inside)
    plateau = np.zeros((40, 60))
    plateau[5:26, 14] = 1  # its middle lies inside, its first pixel does not
    assert faith.points_into(plateau, inside)


def test_energy_of_an_even_map_is_the_share_of_the_area():
    inside = faith.grown((0, 0, 30, 20), (40, 60), by=0)
    assert faith.energy_inside(np.ones((40, 60)), inside) == pytest.approx(0.25)
    assert faith.energy_inside(spot(1, 1), inside) == 1
    assert faith.energy_inside(np.zeros((40, 60)), inside) == 0


def test_places_are_exact_and_nested():
    heat = np.random.default_rng(0).random((20, 10))
    taken = faith.places(heat)
    np.testing.assert_array_equal(taken.sum(axis=(1, 2)), np.arange(11) * 20)
    assert (taken[1:] >= taken[:-1]).all()
    assert heat[taken[3]].min() > heat[~taken[3]].max()


def test_deletion_and_insertion_of_a_model_that_looks_at_one_place():
    picture, blank = np.full((10, 10), 9.0), np.zeros((10, 10))

    def score(pictures):
        return pictures[:, 2, 3] / 9

    best, worst = spot(2, 3, (10, 10)), 1 - spot(2, 3, (10, 10))
    assert faith.deletion(score, picture, blank, best) == pytest.approx(0.05)
    assert faith.insertion(score, picture, blank, best) == pytest.approx(0.95)
    assert faith.deletion(score, picture, blank, worst) == pytest.approx(0.95)
    assert faith.insertion(score, picture, blank, worst) == pytest.approx(0.05)


def test_color_is_taken_away_whole():
    picture, blank = np.ones((4, 4, 3)), np.zeros((4, 4, 3))
    seen = []

    def score(pictures):
        seen.append(pictures)
        return pictures.mean(axis=(1, 2, 3))

    area = faith.deletion(score, picture, blank, np.random.default_rng(0).random((4, 4)))
    assert area == pytest.approx(0.5, abs=0.01)
    assert all((p.min(axis=2) == p.max(axis=2)).all() for p in seen[0])


def test_figures_by_hand():
    boxed = [Measured(f"p{i}", i < 9, 0.5, 0.1 * (i % 3), 0.7) for i in range(10)]
    found = [*boxed, Measured("p10", None, None, 0.1, 0.7), Measured("p11", None, None, 0.2, 0.7)]
    said = faith.figures(found)
    pointing = said["pointing"]
    assert (pointing.value, pointing.n, pointing.method) == (0.9, 10, "Wilson")
    assert said["energy_in_box"].n == 10
    assert said["deletion"].value == pytest.approx(0.1)
    assert said["deletion"].low < 0.1 < said["deletion"].high
    assert said["insertion"].value == pytest.approx(0.7)
    assert said["insertion"].n == 12
    assert faith.figures([found[11]])["pointing"].reason == "no picture has a box"
