"""Mixup and CutMix: neutral at 0, shares that add up, both by the seed alone."""

import pytest
import torch

from lightning_modules.mixup import Mixing


def test_nothing_is_mixed_by_default() -> None:
    image, label = torch.rand(4, 3, 8, 8), torch.arange(4)
    mixed, target = Mixing()(image, label, 4)
    assert mixed is image
    assert target is label


@pytest.mark.parametrize("mixing", [Mixing(mixup=0.4), Mixing(cutmix=1.0), Mixing(0.4, 1.0)])
def test_shares_add_up_and_follow_the_pixels(mixing: Mixing) -> None:
    label = torch.arange(4)
    image = torch.zeros(4, 4, 16, 16)
    image[label, label] = 1.0  # channel k shows how much of image k there is
    mixed, shares = mixing(image, label, 4)
    assert torch.allclose(mixed.mean(dim=(2, 3)), shares, atol=1e-6)
    assert torch.allclose(shares.sum(1), torch.ones(4))


def test_the_seed_decides() -> None:
    image, label, found = torch.rand(4, 3, 8, 8), torch.arange(4), []
    for _ in range(2):
        torch.manual_seed(5)
        found.append(Mixing(0.4, 1.0)(image, label, 4))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def test_out_of_range_is_named() -> None:
    with pytest.raises(ValueError, match=r"mixing\.cutmix: -1 is not at least 0"):
        Mixing(cutmix=-1)
