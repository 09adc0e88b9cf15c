import numpy as np
import pytest
import torch

from datamodules.preprocess import Preprocess, fundus_bounding_box


def test_squash_averages_the_area():
    image = np.kron(np.array([[10, 20], [30, 40]], dtype=np.uint8), np.ones((8, 8), np.uint8))
    image[::2] += 4
    assert Preprocess(size=2).to_pixels(image).tolist() == [[12, 22], [32, 42]]


def test_letterbox_pads_and_crop_takes_the_center():
    wide = np.full((10, 20, 3), 200, np.uint8)
    padded = Preprocess(size=8, fit="letterbox").to_pixels(wide)
    assert padded[:2].max() == 0
    assert padded[-2:].max() == 0
    assert padded[2:6].min() == 200
    wide[:, 5:15] = 7
    assert set(Preprocess(size=10, fit="crop").to_pixels(wide).ravel()) == {7}


def test_the_tensor_has_the_textbook_normalization_and_gray_is_repeated():
    preprocess = Preprocess(size=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    gray = np.arange(16, dtype=np.uint8).reshape(4, 4) * 17
    expected = [(gray / 255 - m) / s for m, s in zip(preprocess.mean, preprocess.std, strict=True)]
    tensor = preprocess(gray)
    assert tensor.dtype == torch.float32
    np.testing.assert_allclose(tensor.numpy(), np.stack(expected), atol=1e-5)
    color = np.stack([gray, gray, gray], axis=-1)
    assert torch.equal(preprocess(color), tensor)


def test_it_can_be_written_as_plain_values_and_its_name_depends_on_them():
    preprocess = Preprocess(size=64, clahe=2.5)
    assert Preprocess.from_dict(preprocess.to_dict()) == preprocess
    assert preprocess.name == Preprocess(size=64, clahe=2.5).name
    assert preprocess.name != Preprocess(size=64, clahe=2.6).name
    assert len(preprocess.name) == 12
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


def test_the_margin_is_part_of_the_pixels_and_evaluation_takes_the_center():
    ramp = np.tile(np.arange(12, dtype=np.uint8) * 20, (12, 1))
    preprocess = Preprocess(size=8, margin=4, mean=(0, 0, 0), std=(1, 1, 1))
    assert preprocess.to_pixels(ramp).shape == (12, 12)
    tensor = preprocess(ramp)
    assert tensor.shape == (3, 8, 8)
    np.testing.assert_allclose(tensor[0, 0] * 255, np.arange(2, 10) * 20, atol=1e-4)


def test_resizing_the_shortest_side_then_cropping_takes_only_the_center():
    image = np.zeros((128, 256), np.uint8)
    image[16:112, 80:176] = 255
    assert Preprocess(size=96, fit="crop", shortest=128).to_pixels(image).min() == 255
    assert Preprocess(size=96, fit="crop").to_pixels(image).min() == 0
    with pytest.raises(ValueError, match="shortest is 90; it must be at least 96"):
        Preprocess(size=96, fit="crop", shortest=90)


def test_clahe_raises_local_contrast_and_does_not_change_the_hue():
    dull = np.tile(np.arange(100, 132, dtype=np.uint8).repeat(4), (128, 1))
    plain, equalized = Preprocess(size=128), Preprocess(size=128, clahe=4.0)
    steps = [np.diff(p.to_pixels(dull).astype(int)).clip(0).mean() for p in (plain, equalized)]
    assert steps[1] > 1.5 * steps[0]
    red = np.stack([dull, dull // 4, dull // 4], axis=-1)
    pixels = equalized.to_pixels(red)
    assert np.diff(pixels[..., 0].astype(int)).clip(0).mean() > 1.5 * steps[0]
    assert (pixels[..., 0] > pixels[..., 1]).all()


def test_size_mean_and_std_can_be_taken_from_a_backbone():
    preprocess = Preprocess.from_backbone("swinv2_tiny_window8_256", {"clahe": 2.5})
    assert (preprocess.size, preprocess.clahe) == (256, 2.5)
    assert Preprocess.from_backbone("vit_tiny_patch16_224.augreg_in21k").mean == (0.5, 0.5, 0.5)
    with pytest.raises(ValueError, match=r"'resnet999'; .*no pretrained cfg"):
        Preprocess.from_backbone("resnet999")


def make_spot(height, width, x, y, radius=6):
    ys, xs = np.mgrid[:height, :width]
    return (np.hypot(xs - x, ys - y) < radius).astype(np.uint8) * 255


def center_of(image):
    return np.average(np.argwhere(image > image.max() / 2), axis=0)[::-1]


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
def test_a_spot_is_projected_back_to_its_place(preprocess, shape):
    height, width = shape
    x, y = width * 0.55, height * 0.42
    image = make_spot(height, width, x, y)
    projected = preprocess.project_to_image(preprocess(image)[0].numpy(), image)
    assert projected.shape == shape
    assert np.abs(center_of(projected) - (x, y)).max() < 1.5


def test_a_coarse_map_is_projected_to_its_quarter_of_the_image():
    image = np.full((80, 40), 9, np.uint8)
    values = np.array([[0.0, 1.0], [0.0, 0.0]])
    projected = Preprocess(size=32).project_to_image(values, image)
    assert projected.shape == (80, 40)
    assert projected[:18, 31:].min() == 1
    assert projected[62:].max() == projected[:, :9].max() == 0


def test_a_projected_map_is_zero_outside_of_the_crop():
    image = np.full((40, 100), 9, np.uint8)
    projected = Preprocess(size=32, fit="crop").project_to_image(np.ones((4, 4)), image)
    assert projected[:, 30:70].min() == 1
    assert projected[:, :30].max() == projected[:, 70:].max() == 0


def test_a_letterbox_fills_the_middle_of_the_square():
    placement = Preprocess(size=50, fit="letterbox").placement(np.zeros((100, 200), np.uint8))
    assert placement.target == (0, 12, 50, 37)


def test_the_disc_of_a_fundus_image_is_cut_out():
    image = np.zeros((400, 600, 3), np.uint8)
    disc = make_spot(400, 600, 310, 190, radius=150) > 0
    image[disc] = (180, 80, 20)
    image[5, 5] = 255
    np.testing.assert_allclose(fundus_bounding_box(image), (160, 40, 460, 340), atol=5)
    pixels = Preprocess(size=64, circle=True).to_pixels(image)
    assert pixels[32, 1:-1].min(axis=0)[0] > 100
    assert fundus_bounding_box(np.zeros((30, 40), np.uint8)) == (0, 0, 40, 30)
