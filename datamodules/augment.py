"""Named augmentation policies: what may happen to a training picture, whatever its label."""

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # read at import; without it the network is asked
import albumentations as A

Step = Any  # albumentations has no types that a strict check accepts
Strengths = dict[str, float]


class Augment:
    """A policy as a function of the pixels and of (seed, epoch, index); it never sees a label.

    Args:
        policy: A name of ``policies()``.
        strengths: The policy's settings that differ from its own, by name.
        crop: Side of a random crop that comes first; null leaves the margin as it is.
    """

    def __init__(
        self, policy: str, strengths: Strengths | None = None, crop: int | None = None
    ) -> None:
        if policy not in _POLICIES:
            raise ValueError(f"augment is {policy!r}; allowed are {policies()}")
        unknown = sorted(set(strengths or {}) - set(_POLICIES[policy].strengths))
        if unknown:
            allowed = sorted(_POLICIES[policy].strengths)
            raise ValueError(f"strengths has {unknown}; {policy!r} allows {allowed}")
        self.policy = policy
        self.strengths = _POLICIES[policy].strengths | (strengths or {})
        self._gray, self._color = self._composed(False, crop), self._composed(True, crop)

    def __call__(self, pixels: np.ndarray, rng_seed: tuple[int, int, int]) -> np.ndarray:
        """The augmented pixels, of the same type and number of channels."""
        compose = self._gray if pixels.ndim == 2 else self._color
        if compose is None:
            return pixels
        compose.set_random_seed(_one_seed(rng_seed))
        return np.asarray(compose(image=pixels)["image"])

    def _composed(self, color: bool, crop: int | None) -> Step:
        steps = _POLICIES[self.policy].steps(self.strengths, color)
        if not steps:
            return None
        return A.Compose([A.RandomCrop(crop, crop), *steps] if crop else steps, seed=0)


@dataclass(frozen=True)
class Policy:
    """How to make the steps, and the strengths that may be changed."""

    steps: Callable[[Strengths, bool], list[Step]]
    strengths: Strengths


def policies() -> list[str]:
    """The names that ``augment`` may have."""
    return sorted(_POLICIES)


def _one_seed(parts: tuple[int, int, int]) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _moved(s: Strengths) -> Step:
    """Turn, zoom and shift in one interpolation."""
    return A.Affine(
        rotate=(-s["rotate"], s["rotate"]),
        scale=(1 - s["scale"], 1 + s["scale"]),
        translate_percent=(-s["shift"], s["shift"]),
        interpolation=cv2.INTER_LINEAR,
        p=0.9,
    )


def _lit(s: Strengths) -> Step:
    return A.RandomBrightnessContrast(s["brightness"], s["contrast"], p=0.8)


def _tinted(s: Strengths, color: bool) -> list[Step]:
    """Saturation and hue; a gray picture has neither."""
    if not color or not s["tint"]:
        return []
    return [A.ColorJitter((1, 1), (1, 1), s["tint"], s["tint"] / 5, p=0.5)]


def _none(s: Strengths, color: bool) -> list[Step]:
    return []


def _fracture(s: Strengths, color: bool) -> list[Step]:
    blur = A.GaussianBlur(blur_limit=(3, 3), p=s["blur"])
    return [_moved(s), A.HorizontalFlip(p=0.5), _lit(s), *_tinted(s, color), blur]


def _retina(s: Strengths, color: bool) -> list[Step]:
    return [_moved(s), A.HorizontalFlip(p=0.5), _lit(s)]


def _mura(s: Strengths, color: bool) -> list[Step]:
    # with a limit of 0 GridDistortion still moves the picture by a pixel
    bent = A.GridDistortion(num_steps=5, distort_limit=s["distort"], p=0.3 * (s["distort"] > 0))
    flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=s["upside_down"])]
    return [*flips, _moved(s), bent, _lit(s)]


def _chest(s: Strengths, color: bool) -> list[Step]:
    gray = [A.ToGray(p=s["gray"])] if color and s["gray"] else []
    return [_moved(s), A.HorizontalFlip(p=0.5), _lit(s), *_tinted(s, color), *gray]


def _gradcam(s: Strengths, color: bool) -> list[Step]:
    return [_moved(s), A.HorizontalFlip(p=0.5), _lit(s)]


_WIDE = {"rotate": 25.0, "scale": 0.1, "shift": 0.05, "brightness": 0.2, "contrast": 0.2}
_NARROW = {"rotate": 15.0, "scale": 0.1, "shift": 0.1, "brightness": 0.3, "contrast": 0.3}
_POLICIES = {
    "none": Policy(_none, {}),
    "fracture": Policy(_fracture, _WIDE | {"tint": 0.2, "blur": 0.1}),
    "retina": Policy(_retina, _WIDE | {"scale": 0.0, "shift": 0.0}),
    "mura": Policy(_mura, _WIDE | {"distort": 0.2, "upside_down": 0.0}),
    "chest": Policy(_chest, _NARROW | {"scale": 0.0, "tint": 0.3, "gray": 0.1}),
    "gradcam": Policy(_gradcam, _NARROW | {"shift": 0.05, "brightness": 0.1, "contrast": 0.1}),
}
