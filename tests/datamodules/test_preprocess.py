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


def test_tensor_is_the_textbook_normalization_and_gray_is_repeated():
    preprocess = Preprocess(size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    gray = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    expected = [(gray / 255 - m) / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)]
    found = preprocess(gray)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), np.stack(expected), atol=1e-5)
    color = np.stack([gray, gray, gray], axis=-1)
    assert torch.equal(preprocess(color), found)


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
    [
        ({"size": 0}, "size is 0"),
        ({"clahe": 0.0}, "clahe is 0"),
        ({"std": (1, 1, 0)}, "std is"),
        ({"std": (float("nan"), 1, 1)}, "std is"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        Preprocess(**values)


def test_margin_is_kept_for_training_and_cut_off_in_evaluation():
    ramp = np.tile(np.arange(12, dtype=np.uint8) * 20, (12, 1))
    preprocess = Preprocess(size=8, margin=4, mean=(0, 0, 0), std=(1, 1, 1))
    assert preprocess.pixels(ramp).shape == (12, 12)
    seen = preprocess(ramp)
    assert seen.shape == (3, 8, 8)
    np.testing.assert_allclose(seen[0, 0] * 255, np.arange(2, 10) * 20, atol=1e-4)


def test_shortest_side_then_crop_sees_only_the_middle():
    picture = np.zeros((128, 256), np.uint8)
    picture[16:112, 80:176] = 255
    assert Preprocess(size=96, fit="crop", shortest=128).pixels(picture).min() == 255
    assert Preprocess(size=96, fit="crop").pixels(picture).min() == 0
    with pytest.raises(ValueError, match="shortest is 90; it must be at least 96"):
        Preprocess(size=96, fit="crop", shortest=90)


def test_equalisation_raises_local_contrast_and_keeps_hue():
    dull = np.tile(np.arange(100, 132, dtype=np.uint8).repeat(4), (128, 1))
    plain, equal = Preprocess(size=128), Preprocess(size=128, clahe=4.0)
    steps = [np.diff(p.pixels(dull).astype(int)).clip(0).mean() for p in (plain, equal)]
    assert steps[1] > 1.5 * steps[0]
    red = np.stack([dull, dull // 4, dull // 4], axis=-1)
    found = equal.pixels(red)
    assert np.diff(found[..., 0].astype(int)).clip(0).mean() > 1.5 * steps[0]
    assert (found[..., 0] > found[..., 1]).all()


def test_a_backbone_brings_its_own_size_and_range():
    preprocess = Preprocess.from_backbone("swinv2_tiny_window8_256", {"clahe": 2.5})
    assert (preprocess.size, preprocess.clahe) == (256, 2.5)
    assert Preprocess.from_backbone("vit_tiny_patch16_224.augreg_in21k").mean == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"'resnet999'; .*no pretrained cfg"):
        Preprocess.from_backbone("resnet999")
