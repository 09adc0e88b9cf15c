"""Mixup and CutMix: neutral at 0, proportions that match the pixels, determined by the seed."""

import pytest
import torch

from lightning_modules.mixup import Mixup


def test_the_default_changes_nothing() -> None:
    image, label = torch.rand(4, 3, 8, 8), torch.arange(4)
    mixed, target = Mixup()(image, label, 4)
    assert mixed is image
    assert target is label


@pytest.mark.parametrize(
    "mixup", [Mixup(mixup_alpha=0.4), Mixup(cutmix_alpha=1.0), Mixup(0.4, 1.0)]
)
def test_class_probabilities_equal_the_proportions_of_the_pixels(mixup: Mixup) -> None:
    label = torch.arange(4)
    image = torch.zeros(4, 4, 16, 16)
    image[label, label] = 1.0  # channel k shows the proportion of image k
    mixed, probabilities = mixup(image, label, 4)
    assert torch.allclose(mixed.mean(dim=(2, 3)), probabilities, atol=1e-6)
    assert torch.allclose(probabilities.sum(1), torch.ones(4))


def test_the_seed_determines_the_result() -> None:
    image, label, results = torch.rand(4, 3, 8, 8), torch.arange(4), []
    for _ in range(2):
        torch.manual_seed(5)
        results.append(Mixup(0.4, 1.0)(image, label, 4))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


def test_values_out_of_range_are_named() -> None:
    with pytest.raises(ValueError, match=r"mixup\.cutmix_alpha: -1 is not at least 0"):
        Mixup(cutmix_alpha=-1)
