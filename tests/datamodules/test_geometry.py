import numpy as np
import pytest

from datamodules.preprocess import Preprocess, fundus_bounding_box


def spotted(height, width, x, y, radius=6):
    ys, xs = np.mgrid[:height, :width]
    return (np.hypot(xs - x, ys - y) < radius).astype(np.uint8) * 255


def middle_of(picture):
    return np.average(np.argwhere(picture > picture.max() / 2), axis=0)[::-1]


SETTINGS = [
    Preprocess(size=96),
    Preprocess(size=96, fit="letterbox"),
    Preprocess(size=96, fit="crop"),
    Preprocess(size=96, fit="crop", shortest=128),
    Preprocess(size=96, margin=15, fit="letterbox"),
    Preprocess(size=300, fit="crop", margin=20),
]


@pytest.mark.parametrize("preprocess", SETTINGS, ids=lambda p: f"{p.fit}-{p.side}-{p.shortest}")
@pytest.mark.parametrize("shape", [(200, 160), (120, 240), (96, 96)])
def test_a_spot_comes_back_to_where_it_was(preprocess, shape):
    height, width = shape
    x, y = width * 0.55, height * 0.42
    picture = spotted(height, width, x, y)
    back = preprocess.back(preprocess.tensor(preprocess.pixels(picture))[0].numpy(), picture)
    assert back.shape == shape
    assert np.abs(middle_of(back) - (x, y)).max() < 1.5


def test_a_coarse_map_covers_its_quarter():
    picture = np.full((80, 40), 9, np.uint8)
    back = Preprocess(size=32).back(np.array([[0.0, 1.0], [0.0, 0.0]]), picture)
    assert back.shape == (80, 40)
    assert back[:18, 31:].min() == 1
    assert back[62:].max() == back[:, :9].max() == 0


def test_what_was_not_seen_is_zero():
    picture = np.full((40, 100), 9, np.uint8)
    back = Preprocess(size=32, fit="crop").back(np.ones((4, 4)), picture)
    assert back[:, 30:70].min() == 1
    assert back[:, :30].max() == back[:, 70:].max() == 0


def test_points_map_corner_to_corner():
    placement = Preprocess(size=50, fit="letterbox").placement(np.zeros((100, 200), np.uint8))
    assert placement.target == (0, 12, 50, 37)
    found = placement.points(np.array([[0, 0], [200, 100], [100, 50]]))
    np.testing.assert_allclose(found, [[0, 12], [50, 37], [25, 24.5]])


def test_the_disc_of_a_fundus_picture_is_found():
    picture = np.zeros((400, 600, 3), np.uint8)
    disc = spotted(400, 600, 310, 190, radius=150) > 0
    picture[disc] = (180, 80, 20)
    picture[5, 5] = 255
    np.testing.assert_allclose(fundus_bounding_box(picture), (160, 40, 460, 340), atol=5)
    seen = Preprocess(size=64, circle=True).pixels(picture)
    assert seen[32, 1:-1].min(axis=0)[0] > 100
    assert fundus_bounding_box(np.zeros((30, 40), np.uint8)) == (0, 0, 40, 30)
