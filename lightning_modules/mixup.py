"""Mixup and CutMix of training batches, by torchvision's transforms."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.transforms import v2


@dataclass(frozen=True)
class Mixup:
    """Mixup and CutMix of a training batch; with both at 0 a batch is not changed.

    The mixing ratio is drawn once per batch; if both are above 0, each batch gets one of them at
    random.

    Args:
        mixup_alpha: parameter of the Beta distribution of Mixup's ratio; 0 turns Mixup off.
        cutmix_alpha: parameter of the Beta distribution of CutMix's area; 0 turns CutMix off.
    """

    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        """Refuses negative values."""
        for name, value in vars(self).items():
            if value < 0:
                raise ValueError(f"mixup.{name}: {value} is not at least 0")

    def __call__(self, image: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,), or mixed images and class probabilities (B, K)."""
        transforms: list[v2.Transform] = []
        if self.mixup_alpha:
            transforms.append(v2.MixUp(alpha=self.mixup_alpha, num_classes=num_classes))
        if self.cutmix_alpha:
            transforms.append(v2.CutMix(alpha=self.cutmix_alpha, num_classes=num_classes))
        if not transforms:
            return image, label
        transform = transforms[int(torch.randint(len(transforms), ()))]
        mixed: tuple[Tensor, Tensor] = transform(image, label)
        return mixed
