"""Named augmentation policies: what may happen to a training picture, whatever its label."""

import hashlib
import os
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # read at import; without it the network is asked
import albumentations as A

Step = Any  # albumentations has no types that a strict check accepts


class Augment:
    """A policy as a function of the pixels and of (seed, epoch, index); it never sees a label.

    Args:
        policy: A name of ``policies()``.
        strengths: The policy's settings that differ from its own, by name.
    """

    def __init__(self, policy: str, strengths: dict[str, float] | None = None) -> None:
        if policy not in _POLICIES:
            raise ValueError(f"augment is {policy!r}; allowed are {policies()}")
        build, defaults = _POLICIES[policy]
        unknown = sorted(set(strengths or {}) - set(defaults))
        if unknown:
            raise ValueError(f"strengths has {unknown}; {policy!r} allows {sorted(defaults)}")
        self.strengths = {**defaults, **(strengths or {})}
        steps = build(self.strengths)
        self._compose = A.Compose(steps, seed=0) if steps else None

    def __call__(self, pixels: np.ndarray, rng_seed: tuple[int, int, int]) -> np.ndarray:
        """The augmented pixels, of the same shape and type."""
        if self._compose is None:
            return pixels
        self._compose.set_random_seed(_one_seed(rng_seed))
        return np.asarray(self._compose(image=pixels)["image"])


def policies() -> list[str]:
    """The names that ``augment`` may have."""
    return sorted(_POLICIES)


def _one_seed(parts: tuple[int, int, int]) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big")


def _moved(rotate: float, scale: float, shift: float, p: float = 1.0) -> Step:
    """Turn, zoom and shift in one interpolation."""
    return A.Affine(
        rotate=(-rotate, rotate),
        scale=(1 - scale, 1 + scale),
        translate_percent=(-shift, shift),
        interpolation=cv2.INTER_LINEAR,
        p=p,
    )


def _none(strengths: dict[str, float]) -> list[Step]:
    return []


def _fracture(s: dict[str, float]) -> list[Step]:
    return [
        _moved(s["rotate"], s["scale"], s["shift"], p=0.9),
        A.HorizontalFlip(p=0.5),
        A.RandomBrightnessContrast(s["brightness"], s["contrast"], p=0.8),
        A.GaussianBlur(blur_limit=(3, 3), p=s["blur"]),
    ]


_POLICIES: dict[str, tuple[Callable[[dict[str, float]], list[Step]], dict[str, float]]] = {
    "none": (_none, {}),
    "fracture": (
        _fracture,
        {
            "rotate": 25,
            "scale": 0.1,
            "shift": 0.05,
            "brightness": 0.2,
            "contrast": 0.2,
            "blur": 0.1,
        },
    ),
}
