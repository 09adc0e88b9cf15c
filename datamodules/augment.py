"""Named augmentation policies for training images, independent of the label."""

import hashlib
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # read at import; otherwise it uses the network
import albumentations as A

Transform = Any  # albumentations has no types that a strict check accepts
AugmentArgs = dict[str, float]


class Augment:
    """Augments images by a named policy; a random crop to ``crop`` pixels a side comes first."""

    def __init__(
        self, policy: str, args: AugmentArgs | None = None, crop: int | None = None
    ) -> None:
        if policy not in AUGMENTATIONS:
            raise ValueError(f"augment is {policy!r}; allowed are {sorted(AUGMENTATIONS)}")
        defaults = AUGMENTATIONS[policy].defaults
        if unknown := sorted(set(args or {}) - set(defaults)):
            raise ValueError(f"augment_args has {unknown}; {policy!r} allows {sorted(defaults)}")
        self.policy, self.args = policy, defaults | (args or {})
        self._gray, self._color = self._compose(False, crop), self._compose(True, crop)

    def __call__(self, pixels: np.ndarray, rng_seed: tuple[int, int, int]) -> np.ndarray:
        """The augmented pixels, of the same dtype, random by (seed, epoch, row) only."""
        transform = self._gray if pixels.ndim == 2 else self._color
        if transform is None:
            return pixels
        digest = hashlib.blake2b(repr(rng_seed).encode(), digest_size=4).digest()
        transform.set_random_seed(int.from_bytes(digest, "big"))
        return np.asarray(transform(image=pixels)["image"])

    def _compose(self, is_color: bool, crop: int | None) -> Transform:
        """The policy's transforms as one for gray or for color images; None if there are none."""
        transforms = AUGMENTATIONS[self.policy].transforms(self.args, is_color)
        if not transforms:
            return None
        return A.Compose([A.RandomCrop(crop, crop), *transforms] if crop else transforms, seed=0)


class AugmentationPolicy(NamedTuple):
    """The transforms of a policy, and the arguments that they take."""

    transforms: Callable[[AugmentArgs, bool], list[Transform]]  # of (arguments, is_color)
    defaults: AugmentArgs  # every argument, with its default


def _affine(args: AugmentArgs) -> Transform:
    """Rotation, scaling and translation in one interpolation."""
    return A.Affine(
        rotate=(-args["rotate"], args["rotate"]),
        scale=(1 - args["scale"], 1 + args["scale"]),
        translate_percent=(-args["shift"], args["shift"]),
        interpolation=cv2.INTER_LINEAR,
        p=0.9,
    )


def _basic(args: AugmentArgs, is_color: bool) -> list[Transform]:
    """Affine motion, horizontal flip, brightness and contrast, and blur if it is switched on."""
    moves = [_affine(args), A.HorizontalFlip(p=0.5)]
    return [*moves, _brightness_contrast(args), *_softening(args)]


def _softening(args: AugmentArgs) -> list[Transform]:
    """Gaussian blur of half of the images, so that sharpness does not tell the class."""
    if not args["soften"]:
        return []
    return [A.GaussianBlur(blur_limit=0, sigma_limit=(0.1, args["soften"]), p=0.5)]


def _brightness_contrast(args: AugmentArgs) -> Transform:
    return A.RandomBrightnessContrast(args["brightness"], args["contrast"], p=0.8)


def _color_jitter(args: AugmentArgs, is_color: bool) -> list[Transform]:
    """Random saturation and hue of half of the images, if they are in color."""
    if not is_color or not args["tint"]:
        return []
    return [A.ColorJitter((1, 1), (1, 1), args["tint"], args["tint"] / 5, p=0.5)]


def _fracture(args: AugmentArgs, is_color: bool) -> list[Transform]:
    blur = A.GaussianBlur(blur_limit=(3, 3), p=args["blur"])
    return [*_basic(args, is_color), *_color_jitter(args, is_color), blur]


def _mura(args: AugmentArgs, is_color: bool) -> list[Transform]:
    # with a limit of 0 GridDistortion still moves the image by a pixel
    p = 0.3 * (args["distort"] > 0)
    distortion = A.GridDistortion(num_steps=5, distort_limit=args["distort"], p=p)
    flips = [A.HorizontalFlip(p=0.5), A.VerticalFlip(p=args["upside_down"])]
    pixels = [_brightness_contrast(args), *_softening(args)]
    return [*flips, _affine(args), distortion, *pixels]


def _chest(args: AugmentArgs, is_color: bool) -> list[Transform]:
    gray = [A.ToGray(p=args["gray"])] if is_color and args["gray"] else []
    return [*_basic(args, is_color), *_color_jitter(args, is_color), *gray]


_WIDE = {"rotate": 25.0, "scale": 0.1, "shift": 0.05, "brightness": 0.2, "contrast": 0.2,
         "soften": 0.0}  # fmt: skip
_NARROW = {"rotate": 15.0, "scale": 0.1, "shift": 0.1, "brightness": 0.3, "contrast": 0.3,
           "soften": 0.0}  # fmt: skip
_GRADCAM = _NARROW | {"shift": 0.05, "brightness": 0.1, "contrast": 0.1}
AUGMENTATIONS = {
    "none": AugmentationPolicy(lambda args, is_color: [], {}),
    "fracture": AugmentationPolicy(_fracture, _WIDE | {"tint": 0.2, "blur": 0.1}),
    "retina": AugmentationPolicy(_basic, _WIDE | {"scale": 0.0, "shift": 0.0}),
    "mura": AugmentationPolicy(_mura, _WIDE | {"distort": 0.2, "upside_down": 0.0}),
    "chest": AugmentationPolicy(_chest, _NARROW | {"scale": 0.0, "tint": 0.3, "gray": 0.1}),
    "gradcam": AugmentationPolicy(_basic, _GRADCAM),
}
