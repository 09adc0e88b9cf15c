"""Test-time augmentation: mean logits of an image and its flipped, rotated and zoomed copies."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Images = Tensor | dict[str, Tensor]
Augmentation = Callable[[Tensor], Tensor]
ALLOWED = "hflip, vflip, rotate:DEGREES, zoom:FACTOR"


def augmentation(name: str) -> Augmentation:
    """The function of a name such as `hflip`, `rotate:5` or `zoom:1.1`; ValueError for others."""
    kind, _, value = name.partition(":")
    if kind in ("hflip", "vflip") and not value:
        return lambda images: images.flip(-1 if kind == "hflip" else -2)
    try:
        amount = float(value)
    except ValueError:
        raise ValueError(f"tta: {name!r} is not one of {ALLOWED}") from None
    if kind == "rotate" and abs(amount) <= 45:
        return lambda images: affine(images, math.radians(amount), 1.0)
    if kind == "zoom" and 0.5 <= amount <= 2:
        return lambda images: affine(images, 0.0, amount)
    raise ValueError(f"tta: {name!r} is not one of {ALLOWED}; up to 45 degrees, 0.5 to 2 times")


def affine(images: Tensor, angle: float, scale: float) -> Tensor:
    """Images (B, C, H, W) rotated counterclockwise by `angle` (radians) and enlarged `scale` times.

    Border pixels are repeated.
    """
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = images.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(images), 2, 3)
    grid = functional.affine_grid(matrix, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def mean_logits(predict: Callable[[Images], Tensor], images: Images, names: list[str]) -> Tensor:
    """Mean of `predict` over the images and one augmented copy per name; shape as `predict`."""
    logits = [predict(images)]
    for augment in map(augmentation, names):
        if isinstance(images, dict):
            logits.append(predict({view: augment(tensor) for view, tensor in images.items()}))
        else:
            logits.append(predict(augment(images)))
    return torch.stack(logits).mean(dim=0)


def tta_notes(names: list[str]) -> list[str]:
    """A list with the note for metrics with test-time augmentation; empty without it."""
    for name in names:
        augmentation(name)  # refuses an unknown name
    note = f"test-time augmentation: mean logits of the image and of {', '.join(names)}"
    return [note] if names else []
