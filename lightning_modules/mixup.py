"""Mixup and CutMix: two images and their labels in shares, by torchvision's own transforms."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2


@dataclass(frozen=True)
class Mixing:
    """Mixes the images of a training batch; 0 and 0 leave it as it is.

    Shares are drawn once a batch; where both are given, each batch takes one of them by chance.

    Args:
        mixup: parameter of the Beta distribution of the shares in which images are overlaid.
        cutmix: the same of the shares of area in which one image is cut into another.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        for name, value in (("mixup", self.mixup), ("cutmix", self.cutmix)):
            if value < 0:
                raise ValueError(f"mixing.{name}: {value} is not at least 0")

    def __bool__(self) -> bool:
        """Whether anything is mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, image: Tensor, label: Tensor, classes: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,), or mixed images and class shares (B, K)."""
        if not self:
            return image, label
        ways: list[v2.Transform] = []
        if self.mixup:
            ways.append(v2.MixUp(alpha=self.mixup, num_classes=classes))
        if self.cutmix:
            ways.append(v2.CutMix(alpha=self.cutmix, num_classes=classes))
        mixed: tuple[Tensor, Tensor] = ways[int(torch.randint(len(ways), ()))](image, label)
        return mixed
