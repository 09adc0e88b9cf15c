import numpy as np
import pytest
import torch

from datamodules.preprocess import Preprocess


def test_squash_takes_the_mean_of_the_area():
    image = np.kron(np.array([[10, 20], [30, 40]], dtype=np.uint8), np.ones((8, 8), np.uint8))
    image[::2] += 4
    assert Preprocess(size=2).pixels(image).tolist() == [[12, 22], [32, 42]]


def test_letterbox_pads_and_crop_cuts():
    wide = np.full((10, 20, 3), 200, np.uint8)
    boxed = Preprocess(size=8, fit="letterbox").pixels(wide)
    assert boxed[:2].max() == 0
    assert boxed[-2:].max() == 0
    assert boxed[2:6].min() == 200
    wide[:, 5:15] = 7
    assert set(Preprocess(size=10, fit="crop").pixels(wide).ravel()) == {7}


def test_tensor_is_the_textbook_normalisation_and_gray_is_repeated():
    preprocess = Preprocess(size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    gray = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    expected = [(gray / 255 - m) / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)]
    found = preprocess(gray)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-5)
    colour = np.stack([gray, gray, gray], axis=-1)
    assert torch.equal(preprocess(colour), found)


def test_it_travels_as_plain_data_and_its_name_follows_its_values():
    one = Preprocess(size=64, clahe=2.5)
    assert Preprocess.from_dict(one.to_dict()) == one
    assert one.name == Preprocess(size=64, clahe=2.5).name
    assert one.name != Preprocess(size=64, clahe=2.6).name
    assert len(one.name) == 12
    with pytest.raises(ValueError, match=r"no \['sizes'\]; allowed are \['size'"):
        Preprocess.from_dict({"sizes": 3})


@pytest.mark.parametrize(
    ("values", "message"),
    [({"size": 0}, "size is 0"), ({"clahe": 0.0}, "clahe is 0"), ({"std": (1, 1, 0)}, "std is")],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**values)
