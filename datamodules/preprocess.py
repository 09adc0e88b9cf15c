"""The deterministic steps from a decoded image to the input of a network, as plain data."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self, TypeVar, get_args

import cv2
import numpy as np
import torch

Fit = Literal["squash", "letterbox", "crop"]
Box = tuple[int, int, int, int]
MAX_SIDE = 16_384  # pixels
T = TypeVar("T")


def as_settings(kind: type[T], values: T | Mapping[str, Any]) -> T:
    """``kind(**values)`` if ``values`` is a mapping, else ``values``, which is a ``kind``."""
    return kind(**values) if isinstance(values, Mapping) else values


@dataclass(frozen=True)
class Placement:
    """Which rectangle of an image fills which of the square input, both ``x0, y0, x1, y1``."""

    source: Box  # the part of the image that the network sees
    target: Box  # the part of the square that it fills; the rest of the square is black
    side: int  # of the square

    def apply(self, image: np.ndarray) -> np.ndarray:
        """The (side, side) or (side, side, 3) square of an image, resized as by ``resize``."""
        x0, y0, x1, y1 = self.target
        part = _resize_part(image, self.source, self.target)
        if (x0, y0, x1, y1) == (0, 0, self.side, self.side):
            return part
        square = np.zeros((self.side, self.side, *image.shape[2:]), dtype=image.dtype)
        square[y0:y1, x0:x1] = part
        return square

    def invert(self, square: np.ndarray, height: int, width: int) -> np.ndarray:
        """A (side, side) map as a map (height, width) of the image; 0 outside of ``source``."""
        x0, y0, x1, y1 = self.source
        out = np.zeros((height, width, *square.shape[2:]), dtype=square.dtype)
        out[y0:y1, x0:x1] = _resize_part(square, self.target, self.source)
        return out


@dataclass(frozen=True)
class Preprocess:
    """The preprocessing of every image, independent of its label; equal settings, equal pixels.

    Args:
        size: Side of the square network input in pixels.
        fit: How an image that is not square becomes one: ``squash`` stretches it, ``letterbox``
            keeps its aspect ratio and pads with black, ``crop`` takes the center.
        shortest: For ``crop``: length to which the shorter side is resized before the center crop;
            null means ``size``, so that nothing of the shorter side is cut off.
        margin: Extra pixels of height and width for the random crop of training; evaluation takes
            the center.
        circle: Whether the black surround of a fundus photograph is cut off first.
        clahe: Clip limit of CLAHE (local contrast equalization) after the resize, on gray values
            or on the luminance of color images; null switches it off.
        grid: Number of CLAHE tiles along each side.
        mean: Mean of each channel that is subtracted, for pixel values from 0 to 1.
        std: Standard deviation that each channel is divided by, for pixel values from 0 to 1.
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
        for name, minimum in (("size", 1), ("grid", 1), ("margin", 0), ("shortest", 1)):
            value = getattr(self, name)
            if value is None and name == "shortest":
                continue
            if not isinstance(value, int) or not minimum <= value <= MAX_SIDE:
                allowed = f"it must be at least {minimum} and at most {MAX_SIDE}"
                raise ValueError(f"{name} is {value!r}; {allowed}")
        if self.fit not in get_args(Fit):
            raise ValueError(f"fit is {self.fit!r}; it must be one of {', '.join(get_args(Fit))}")
        if self.clahe is not None and not 0 < self.clahe < math.inf:
            raise ValueError(f"clahe is {self.clahe}; it must be above 0, or null for none")
        if self.clahe is not None and self.grid > self.side:
            raise ValueError(f"grid is {self.grid}; the image has only {self.side} pixels a side")
        if self.shortest is not None and self.shortest < self.side:
            raise ValueError(f"shortest is {self.shortest}; it must be at least {self.side}")
        for name, lowest in (("mean", -math.inf), ("std", 0.0)):
            values = getattr(self, name)
            if len(values) != 3 or not all(lowest < value < math.inf for value in values):
                raise ValueError(f"{name} is {values}; it must be 3 numbers above {lowest:g}")

    @property
    def side(self) -> int:
        """Side of the square that ``to_pixels`` returns: size plus margin."""
        return self.size + self.margin

    @property
    def name(self) -> str:
        """Twelve hexadecimal digits: the hash of the settings, used as the name of a view."""
        text = json.dumps(self.to_dict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """The network input, float32 (3, size, size), of a decoded image without augmentation."""
        return self.to_tensor(self.to_pixels(image))

    def to_pixels(self, image: np.ndarray) -> np.ndarray:
        """Pixels before normalization, uint8 (side, side) or, in color, (side, side, 3)."""
        square = self.placement(image).apply(image)
        return square if self.clahe is None else _equalize(square, self.clahe, self.grid)

    def placement(self, image: np.ndarray) -> Placement:
        """Which part of this image fills which part of the square of ``to_pixels``."""
        height, width = image.shape[:2]
        box = fundus_bounding_box(image) if self.circle else (0, 0, width, height)
        x0, y0, x1, y1 = box
        width, height, side, whole = x1 - x0, y1 - y0, self.side, (0, 0, self.side, self.side)
        if self.fit == "squash":
            return Placement(box, whole, side)
        if self.fit == "letterbox":
            w, h = (max(1, round(n * side / max(width, height))) for n in (width, height))
            left, top = (side - w) // 2, (side - h) // 2
            return Placement(box, (left, top, left + w, top + h), side)
        length = max(1, min(width, height) * side // (self.shortest or side))
        left, top = x0 + (width - length) // 2, y0 + (height - length) // 2
        return Placement((left, top, left + length, top + length), whole, side)

    def project_to_image(self, values: np.ndarray, image: np.ndarray) -> np.ndarray:
        """A (h, w) map of the network input, such as a saliency map, as a map of the whole image.

        Returns (H, W) float32 of the size of the image; 0 where the network saw nothing.
        """
        square = np.zeros((self.side, self.side), dtype=np.float32)
        start = self.margin // 2
        center = slice(start, start + self.size)
        square[center, center] = resize(values.astype(np.float32), self.size, self.size)
        return self.placement(image).invert(square, *image.shape[:2])

    def to_tensor(self, pixels: np.ndarray) -> torch.Tensor:
        """Pixels of ``to_pixels`` as normalized float32 (3, size, size); gray is repeated."""
        return self.normalize(torch.from_numpy(np.ascontiguousarray(self.to_channels(pixels))))

    def to_channels(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels as (1 or 3, size, size); a margin that is still there is cut off."""
        top, left = (pixels.shape[0] - self.size) // 2, (pixels.shape[1] - self.size) // 2
        center = pixels[top : top + self.size, left : left + self.size]
        return center[None] if center.ndim == 2 else center.transpose(2, 0, 1)

    def normalize(self, channels: torch.Tensor) -> torch.Tensor:
        """float32 (..., 3, size, size) of uint8 (..., 1 or 3, size, size), on the same device.

        Two steps that round once each, so every device gives the same bits.
        """
        scale = [1 / (255 * std) for std in self.std]
        shift = [mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        device = channels.device
        factor, offset = (torch.tensor(v, device=device).view(3, 1, 1) for v in (scale, shift))
        return (channels * factor).sub_(offset)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``from_dict`` accepts."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def pixel_settings(self) -> dict[str, Any]:
        """The settings that the result of ``to_pixels`` depends on."""
        return {k: v for k, v in self.to_dict().items() if k not in ("mean", "std")}

    @classmethod
    def from_backbone(cls, name: str, changes: dict[str, Any] | None = None) -> Self:
        """Size, mean and std of timm's pretrained weights ``name``, updated by ``changes``."""
        import timm  # takes seconds, and nothing else here needs it

        try:
            config: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
        except RuntimeError as error:
            raise ValueError(f"backbone is {name!r}; {error}") from error
        settings = {"size": int(config.input_size[-1]), "mean": config.mean, "std": config.std}
        return cls.from_dict(settings | (changes or {}))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Settings from plain values; ValueError for a name that is not a setting."""
        allowed = [field.name for field in fields(cls)]
        unknown = sorted(set(values) - set(allowed))
        if unknown:
            raise ValueError(f"Preprocess has no {unknown}; allowed are {allowed}")
        tuples: dict[str, Any] = {k: tuple(v) for k, v in values.items() if isinstance(v, list)}
        return cls(**values | tuples)


def fundus_bounding_box(image: np.ndarray, threshold: int = 12) -> Box:
    """The rectangle around the bright disc of a fundus image; the whole image if it is dark.

    A row or column counts if more than 2 % of it is brighter than the threshold, so a single
    bright speck in the black surround does not.
    """
    height, width = image.shape[:2]
    step = max(1, min(height, width) // 256)
    small = image[::step, ::step]
    bright = (small if small.ndim == 2 else small.max(axis=2)) > threshold
    columns, rows = np.flatnonzero(bright.mean(0) > 0.02), np.flatnonzero(bright.mean(1) > 0.02)
    if not len(columns) or not len(rows):
        return 0, 0, width, height
    right, bottom = (int(columns[-1]) + 1) * step, (int(rows[-1]) + 1) * step
    return int(columns[0]) * step, int(rows[0]) * step, min(right, width), min(bottom, height)


def resize(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """The image as (height, width[, 3]), by area average if it shrinks, else linearly."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] > height or image.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method))


def _resize_part(image: np.ndarray, part: Box, goal: Box) -> np.ndarray:
    """The rectangle ``part`` of an image, resized to the size of the rectangle ``goal``."""
    x0, y0, x1, y1 = part
    return resize(image[y0:y1, x0:x1], goal[2] - goal[0], goal[3] - goal[1])


def _equalize(pixels: np.ndarray, clip_limit: float, grid: int) -> np.ndarray:
    """CLAHE of the gray values, or of the luminance of a color image."""
    clahe = cv2.createCLAHE(clipLimit=clip_limit, tileGridSize=(grid, grid))
    if pixels.ndim == 2:
        return np.asarray(clahe.apply(pixels))
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[..., 0] = clahe.apply(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))
