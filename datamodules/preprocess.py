"""The deterministic steps from a decoded picture to a network's input, as plain data."""

import hashlib
import json
import math
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

import cv2
import numpy as np
import torch

from datamodules.geometry import Fit, Placement, circle_box, place, resized


@dataclass(frozen=True)
class Preprocess:
    """What is done to every picture, whatever its label; equal settings give equal pixels.

    Args:
        size: Side of the square that the network sees, in pixels.
        fit: How a picture that is not square becomes one: ``squash`` stretches it, ``letterbox``
            keeps its shape and pads with black, ``crop`` keeps the middle.
        shortest: For ``crop``: what the shorter side is resized to before the middle is cut out;
            null means ``size``, so that the shorter side is seen whole.
        margin: How many pixels more than ``size`` are kept for training's random crop; evaluation
            sees the middle.
        circle: Whether the black surround of a fundus picture is cut off first.
        clahe: Clip limit of the local contrast equalisation, applied after the resize, on gray
            directly and on the luminance of color; null leaves it out.
        grid: How many tiles the equalisation has along each side.
        mean: What is subtracted from each channel, in units of the full range.
        std: What each channel is divided by, in units of the full range.
    """

    size: int = 224
    fit: Fit = "squash"
    shortest: int | None = None
    margin: int = 0
    circle: bool = False
    clahe: float | None = None
    grid: int = 8
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for name, least in (("size", 1), ("grid", 1), ("margin", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.clahe is not None and self.clahe <= 0:
            raise ValueError(f"clahe is {self.clahe}; it must be above 0, or null for none")
        if self.shortest is not None and self.shortest < self.side:
            raise ValueError(f"shortest is {self.shortest}; it must be at least {self.side}")
        if not all(0 < value < math.inf for value in self.std):
            raise ValueError(f"std is {self.std}; every value must be above 0")

    @property
    def side(self) -> int:
        """Side of what ``pixels`` gives: the size and the margin."""
        return self.size + self.margin

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """What the network sees of a decoded picture when nothing is augmented."""
        return self.tensor(self.pixels(image))

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The part worth keeping: uint8, (side, side) for gray and (side, side, 3) for color."""
        square = self.placement(image).forward(image)
        return square if self.clahe is None else _equalized(square, self.clahe, self.grid)

    def placement(self, image: np.ndarray) -> Placement:
        """Which part of this picture lands where in the square of ``pixels``."""
        height, width = image.shape[:2]
        box = circle_box(image) if self.circle else (0, 0, width, height)
        return place(box, self.side, self.fit, self.shortest or self.side)

    def back(self, seen: np.ndarray, image: np.ndarray) -> np.ndarray:
        """A map over what the network saw, of any resolution, as a map over the whole picture.

        Args:
            seen: (h, w), for instance a heat map of 7 x 7.
            image: The decoded picture that the network was given.

        Returns:
            (H, W) float32 of the picture's own size; 0 where the network saw nothing.
        """
        square = np.zeros((self.side, self.side), dtype=np.float32)
        start = self.margin // 2
        middle = slice(start, start + self.size)
        square[middle, middle] = resized(seen.astype(np.float32), self.size, self.size)
        return self.placement(image).backward(square, *image.shape[:2])

    def tensor(self, pixels: np.ndarray) -> torch.Tensor:
        """The last part: float32 (3, size, size), normalized, gray repeated three times."""
        return self.normalized(torch.from_numpy(np.ascontiguousarray(self.planes(pixels))))

    def planes(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels as (1 or 3, size, size); of those that still have their margin the middle."""
        middle = _middle(pixels, self.size)
        return middle[None] if middle.ndim == 2 else middle.transpose(2, 0, 1)

    def normalized(self, planes: torch.Tensor) -> torch.Tensor:
        """Float32 (…, 3, size, size) of uint8 (…, 1 or 3, size, size), on the device it is on.

        Two steps that round once each, so every device gives the same bits.
        """
        scale = [1 / (255 * std) for std in self.std]
        shift = [mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        by, off = (torch.tensor(v, device=planes.device).view(3, 1, 1) for v in (scale, shift))
        return (planes * by).sub_(off)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``from_dict`` reads back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def kept(self) -> dict[str, Any]:
        """The settings that ``pixels`` depends on."""
        return {k: v for k, v in self.to_dict().items() if k not in ("mean", "std")}

    @classmethod
    def of_backbone(cls, name: str, changes: dict[str, Any] | None = None) -> Self:
        """The size, mean and std that timm's weights of this name were trained with."""
        import timm  # takes seconds, and nothing else here needs it

        try:
            config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
        except RuntimeError as error:
            raise ValueError(f"backbone is {name!r}; {error}") from error
        own = {"size": int(config.input_size[-1]), "mean": config.mean, "std": config.std}
        return cls.from_dict(own | (changes or {}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The same settings from plain values; a name that is not a setting is refused."""
        allowed = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(allowed))
        if unknown:
            raise ValueError(f"Preprocess has no {unknown}; allowed are {allowed}")
        plain: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in values.items()
        }
        return cls(**plain)

    @property
    def name(self) -> str:
        """Twelve hexadecimal digits that say which view of a picture this is."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]


def _middle(pixels: np.ndarray, size: int) -> np.ndarray:
    top, left = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[top : top + size, left : left + size]


def _equalized(pixels: np.ndarray, clip: float, grid: int) -> np.ndarray:
    """Gray directly; of a color picture only the luminance."""
    clahe = cv2.createCLAHE(clipLimit=clip, tileGridSize=(grid, grid))
    if pixels.ndim == 2:
        return np.asarray(clahe.apply(pixels))
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[..., 0] = clahe.apply(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))
