"""The deterministic steps from a decoded picture to a network's input, as plain data."""

import hashlib
import json
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, Self

import cv2
import numpy as np
import torch

Fit = Literal["squash", "letterbox", "crop"]


@dataclass(frozen=True)
class Preprocess:
    """What is done to every picture, whatever its label; equal settings give equal pixels.

    Args:
        size: Side of the square that the network sees, in pixels.
        fit: How a picture that is not square becomes one: ``squash`` stretches it, ``letterbox``
            keeps its shape and pads with black, ``crop`` keeps the middle of the longer side.
        clahe: Clip limit of the local contrast equalisation on an 8 x 8 grid; null leaves it out.
        mean: What is subtracted from each channel, in units of the full range.
        std: What each channel is divided by, in units of the full range.
    """

    size: int = 224
    fit: Fit = "squash"
    clahe: float | None = None
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size is {self.size}; it must be at least 1")
        if self.clahe is not None and self.clahe <= 0:
            raise ValueError(f"clahe is {self.clahe}; it must be above 0, or null for none")
        if min(self.std) <= 0:
            raise ValueError(f"std is {self.std}; every value must be above 0")

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """What the network sees of a decoded picture when nothing is augmented."""
        return self.tensor(self.pixels(image))

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The part worth keeping: uint8, (size, size) for gray and (size, size, 3) for colour."""
        square = _SHAPES[self.fit](image, self.size)
        return square if self.clahe is None else _equalised(square, self.clahe)

    def tensor(self, pixels: np.ndarray) -> torch.Tensor:
        """The last part: float32 (3, size, size), normalised, gray repeated three times."""
        scale = 1.0 / (255.0 * np.asarray(self.std, dtype=np.float32))
        shift = np.asarray(self.mean, dtype=np.float32) / np.asarray(self.std, dtype=np.float32)
        out = np.empty((3, *pixels.shape[:2]), dtype=np.float32)
        for c in range(3):
            channel = pixels if pixels.ndim == 2 else pixels[..., c]
            np.multiply(channel, scale[c], out=out[c])
            out[c] -= shift[c]
        return torch.from_numpy(out)

    def to_dict(self) -> dict[str, Any]:
        """Plain values that ``from_dict`` reads back."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

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


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    """Area average where the picture shrinks, linear where it grows."""
    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] > height or image.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method))


def _squash(image: np.ndarray, size: int) -> np.ndarray:
    return _resized(image, size, size)


def _letterbox(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    longer = max(height, width)
    high, wide = max(1, round(height * size / longer)), max(1, round(width * size / longer))
    top, left = (size - high) // 2, (size - wide) // 2
    out = np.zeros((size, size, *image.shape[2:]), dtype=np.uint8)
    out[top : top + high, left : left + wide] = _resized(image, wide, high)
    return out


def _crop(image: np.ndarray, size: int) -> np.ndarray:
    height, width = image.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return _resized(image[top : top + side, left : left + side], size, size)


_SHAPES = {"squash": _squash, "letterbox": _letterbox, "crop": _crop}


def _equalised(pixels: np.ndarray, clip: float) -> np.ndarray:
    """Gray directly; of a colour picture only the luminance."""
    clahe = cv2.createCLAHE(clipLimit=clip, tileGridSize=(8, 8))
    if pixels.ndim == 2:
        return np.asarray(clahe.apply(pixels))
    lab = cv2.cvtColor(pixels, cv2.COLOR_RGB2LAB)
    lab[..., 0] = clahe.apply(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB))
