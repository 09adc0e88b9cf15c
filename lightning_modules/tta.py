"""Test-time augmentation: the same picture turned, flipped and scaled, its logits averaged."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Image = Tensor | dict[str, Tensor]
Change = Callable[[Tensor], Tensor]
ALLOWED = "hflip, vflip, rotate:DEGREES, zoom:FACTOR"


def changes(names: list[str]) -> list[Change]:
    """What is looked at: the picture itself first, then one changed picture a name."""
    return [lambda image: image, *(change(name) for name in names)]


def looks(names: list[str]) -> list[str]:
    """The note that figures of changed pictures carry; none where nothing is changed."""
    count = len(changes(names))
    told = f"{count} looks at every picture, their logits averaged: as it is, {', '.join(names)}"
    return [told] if names else []


def change(name: str) -> Change:
    """The change of a name such as `hflip`, `rotate:5` or `zoom:1.1`."""
    kind, _, value = name.partition(":")
    if kind in ("hflip", "vflip") and not value:
        return lambda image: image.flip(-1 if kind == "hflip" else -2)
    try:
        amount = float(value)
    except ValueError:
        raise ValueError(f"tta: {name!r} is not one of {ALLOWED}") from None
    if kind == "rotate" and abs(amount) <= 45:
        return lambda image: warped(image, math.radians(amount), 1.0)
    if kind == "zoom" and 0.5 <= amount <= 2:
        return lambda image: warped(image, 0.0, amount)
    raise ValueError(f"tta: {name!r} is not one of {ALLOWED}; up to 45 degrees, 0.5 to 2 times")


def warped(image: Tensor, angle: float, scale: float) -> Tensor:
    """Images (B, C, H, W) turned counter-clockwise and enlarged; the border goes on."""
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    matrix = image.new_tensor([[cos, -sin, 0.0], [sin, cos, 0.0]]).expand(len(image), 2, 3)
    grid = functional.affine_grid(matrix, list(image.shape), align_corners=False)
    return functional.grid_sample(image, grid, padding_mode="border", align_corners=False)


def averaged(said: Callable[[Image], Tensor], image: Image, names: list[str]) -> Tensor:
    """Mean logits of the picture and its changes; without names exactly what is said of it."""
    if not names:
        return said(image)
    return torch.stack([said(applied(seen, image)) for seen in changes(names)]).mean(dim=0)


def applied(seen: Change, image: Image) -> Image:
    """The changed images, of every view where there are several."""
    if isinstance(image, dict):
        return {view: seen(pictures) for view, pictures in image.items()}
    return seen(image)
