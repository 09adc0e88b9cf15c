import numpy as np
import pytest

from datamodules.augment import Augment, policy_names

GRAY = np.random.default_rng(0).integers(0, 255, (48, 48), dtype=np.uint8)
COLOUR = np.random.default_rng(1).integers(0, 255, (48, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize("policy", policy_names())
@pytest.mark.parametrize("pixels", [GRAY, COLOUR], ids=["gray", "color"])
def test_shape_and_type_stay_and_the_seed_decides(policy, pixels):
    augment = Augment(policy)
    first = [augment(pixels, (0, 0, index)) for index in range(8)]
    again = [Augment(policy)(pixels, (0, 0, index)) for index in reversed(range(8))][::-1]
    for one, other in zip(first, again, strict=True):
        assert one.dtype == np.uint8
        assert one.shape == pixels.shape
        assert np.array_equal(one, other)
    changed = [not np.array_equal(one, pixels) for one in first]
    assert any(changed) == (policy != "none")
    if policy != "none":
        assert not np.array_equal(augment(pixels, (1, 0, 0)), augment(pixels, (0, 1, 0)))


def test_five_systems_have_their_policies():
    assert policy_names() == ["chest", "fracture", "gradcam", "mura", "none", "retina"]


def test_strengths_are_arguments():
    still = {"rotate": 0, "scale": 0, "shift": 0, "brightness": 0, "contrast": 0, "distort": 0}
    augment = Augment("mura", still)
    for index in range(10):
        found = augment(GRAY, (0, 0, index))
        assert np.array_equal(found, GRAY) or np.array_equal(found, GRAY[:, ::-1])
    with pytest.raises(ValueError, match=r"strengths has \['blur'\]; 'mura' allows \['brightness'"):
        Augment("mura", {"blur": 1})
    with pytest.raises(ValueError, match=r"augment is 'heavy'; allowed are \['chest'"):
        Augment("heavy")


def test_a_random_crop_takes_the_margin():
    augment = Augment("gradcam", crop=40)
    assert augment(GRAY, (0, 0, 0)).shape == (40, 40)
    assert Augment("none", crop=40)(GRAY, (0, 0, 0)).shape == (48, 48)
