import numpy as np
import pytest

from datamodules.augment import AUGMENTATIONS, Augment

GRAY = np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8)
COLOR = np.random.default_rng(1).integers(0, 255, (48, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("policy", AUGMENTATIONS)
@pytest.mark.parametrize("pixels", [GRAY, COLOR], ids=["gray", "color"])
def test_shape_and_type_stay_and_the_seed_determines_the_result(policy, pixels):
    augment = Augment(policy)
    first = [augment(pixels, (0, 0, index)) for index in range(8)]
    again = [Augment(policy)(pixels, (0, 0, index)) for index in reversed(range(8))][::-1]
    for image, repeated in zip(first, again, strict=True):
        assert image.dtype == np.uint8
        assert image.shape == pixels.shape
        assert np.array_equal(image, repeated)
    changed = [not np.array_equal(image, pixels) for image in first]
    assert any(changed) == (policy != "none")
    if policy != "none":
        assert not np.array_equal(augment(pixels, (1, 0, 0)), augment(pixels, (0, 1, 0)))


def test_the_five_systems_have_a_policy_each():
    assert sorted(AUGMENTATIONS) == ["chest", "fracture", "gradcam", "mura", "none", "retina"]


def test_arguments_change_the_policy_and_unknown_ones_are_refused():
    off = {"rotate": 0, "scale": 0, "shift": 0, "brightness": 0, "contrast": 0, "distort": 0}
    augment = Augment("mura", off)
    for index in range(10):
        image = augment(GRAY, (0, 0, index))
        assert np.array_equal(image, GRAY) or np.array_equal(image, GRAY[:, ::-1])
    message = r"augment_args has \['blur'\]; 'mura' allows \['brightness'"
    with pytest.raises(ValueError, match=message):
        Augment("mura", {"blur": 1})
    with pytest.raises(ValueError, match=r"augment is 'heavy'; allowed are \['chest'"):
        Augment("heavy")


@pytest.mark.parametrize("policy", sorted(set(AUGMENTATIONS) - {"none"}))
def test_softening_takes_the_sharpness_of_half_of_the_images(policy):
    still = {name: 0.0 for name in AUGMENTATIONS[policy].defaults}
    sharpness = [
        np.abs(
            np.diff(Augment(policy, still | {"soften": 3.0})(GRAY, (0, 0, k)).astype(int))
        ).mean()
        for k in range(40)
    ]
    assert 10 < sum(value < 0.8 * max(sharpness) for value in sharpness) < 30
    assert Augment(policy, still).args["soften"] == 0.0


def test_a_random_crop_removes_the_margin():
    augment = Augment("gradcam", crop=40)
    assert augment(GRAY, (0, 0, 0)).shape == (40, 40)
    assert Augment("none", crop=40)(GRAY, (0, 0, 0)).shape == (48, 48)
