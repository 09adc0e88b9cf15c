import numpy as np
import pytest

from evaluation import saliency
from evaluation.saliency import SaliencyScores


def point_map(y, x, shape=(40, 60)):
    saliency_map = np.zeros(shape)
    saliency_map[y, x] = 1
    return saliency_map


def test_box_is_parsed_and_other_text_is_an_error():
    assert saliency.parse_box("3,4,10,12") == (3, 4, 10, 12)
    assert saliency.parse_box("") is None
    with pytest.raises(ValueError, match="box is '3,4,10'"):
        saliency.parse_box("3,4,10")


def test_margin_of_a_box_is_a_fraction_of_the_long_side():
    mask = saliency.box_mask((10, 10, 20, 20), (40, 60), margin=0.05)
    assert mask.sum() == 16 * 16  # 3 pixels on every side
    assert mask[7, 7]
    assert not mask[6, 7]
    assert saliency.box_mask((10, 10, 20, 20), (40, 60), margin=0).sum() == 100


def test_only_the_peak_of_a_map_counts_for_pointing():
    mask = saliency.box_mask((10, 10, 20, 20), (40, 60), margin=0)
    assert saliency.is_peak_inside(point_map(10, 19) + 0.5 * point_map(30, 30), mask)
    assert not saliency.is_peak_inside(point_map(10, 20), mask)
    assert not saliency.is_peak_inside(np.zeros((40, 60)), mask)
    plateau = np.zeros((40, 60))
    plateau[5:26, 14] = 1  # its mean is inside, its first pixel is not
    assert saliency.is_peak_inside(plateau, mask)


def test_energy_of_a_constant_map_is_the_fraction_of_the_area():
    mask = saliency.box_mask((0, 0, 30, 20), (40, 60), margin=0)
    assert saliency.energy_inside(np.ones((40, 60)), mask) == pytest.approx(0.25)
    assert saliency.energy_inside(point_map(1, 1), mask) == 1
    assert saliency.energy_inside(np.zeros((40, 60)), mask) == 0


def test_top_pixels_are_exact_and_nested():
    saliency_map = np.random.default_rng(0).random((20, 10))
    masks = saliency.top_pixels(saliency_map)
    np.testing.assert_array_equal(masks.sum(axis=(1, 2)), np.arange(11) * 20)
    assert (masks[1:] >= masks[:-1]).all()
    assert saliency_map[masks[3]].min() > saliency_map[~masks[3]].max()


def test_deletion_and_insertion_of_a_model_of_one_pixel():
    image, baseline = np.full((10, 10), 9.0), np.zeros((10, 10))

    def score(images):
        return images[:, 2, 3] / 9

    best, worst = point_map(2, 3, (10, 10)), 1 - point_map(2, 3, (10, 10))
    assert saliency.deletion_auc(score, image, baseline, best) == pytest.approx(0.05)
    assert saliency.insertion_auc(score, image, baseline, best) == pytest.approx(0.95)
    assert saliency.deletion_auc(score, image, baseline, worst) == pytest.approx(0.95)
    assert saliency.insertion_auc(score, image, baseline, worst) == pytest.approx(0.05)


def test_all_channels_of_a_pixel_are_deleted_together():
    image, baseline = np.ones((4, 4, 3)), np.zeros((4, 4, 3))
    scored = []

    def score(images):
        scored.append(images)
        return images.mean(axis=(1, 2, 3))

    area = saliency.deletion_auc(score, image, baseline, np.random.default_rng(0).random((4, 4)))
    assert area == pytest.approx(0.5, abs=0.01)
    assert all((p.min(axis=2) == p.max(axis=2)).all() for p in scored[0])


def test_estimates_as_computed_by_hand():
    boxed = [SaliencyScores(f"p{i}", i < 9, 0.5, 0.1 * (i % 3), 0.7) for i in range(10)]
    scores = [
        *boxed,
        SaliencyScores("p10", None, None, 0.1, 0.7),
        SaliencyScores("p11", None, None, 0.2, 0.7),
    ]
    estimates = saliency.saliency_estimates(scores)
    pointing = estimates["pointing"]
    assert (pointing.value, pointing.n, pointing.method) == (0.9, 10, "Wilson")
    assert estimates["energy_in_box"].n == 10
    assert estimates["deletion"].value == pytest.approx(0.1)
    assert estimates["deletion"].low < 0.1 < estimates["deletion"].high
    assert estimates["insertion"].value == pytest.approx(0.7)
    assert estimates["insertion"].n == 12
    assert saliency.saliency_estimates([scores[11]])["pointing"].reason == "no image has a box"
