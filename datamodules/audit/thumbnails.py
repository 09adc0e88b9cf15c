"""Thumbnails of images, whose copies are searched, and thumbnails of simulated copies."""

from dataclasses import dataclass
from typing import Protocol

import cv2
import numpy as np

from datamodules.audit.alignment import pose_matrix, resize

THUMBNAIL_SIZE = 128


class Images(Protocol):
    """Gray images, in memory or in files."""

    def __getitem__(self, place: tuple[int, int], /) -> np.ndarray:
        """The image (side, side) at (row, view)."""


@dataclass(frozen=True, eq=False)
class Thumbnails:
    """Thumbnails of some of the files, without a copy of the pixels."""

    images: Images  # (n, views, side, side); of square images only the first view is set
    rows: np.ndarray  # (m,) positions of the files that are compared
    shorter_sides: np.ndarray  # (m,) of the original images, the limit of their detail
    is_square: np.ndarray  # (m,) whether both views are the same

    def __len__(self) -> int:
        return len(self.rows)

    def view(self, k: int, which: int) -> np.ndarray:
        """The center square (0) or the whole image squashed (1) of the k-th file."""
        return np.asarray(self.images[self.rows[k], 0 if self.is_square[k] else which])

    @staticmethod
    def of_images(images: list[np.ndarray]) -> "Thumbnails":
        """The thumbnails of images in memory."""
        pixels = stack_thumbnails([make_thumbnails(image) for image in images])
        size = np.array([image.shape[:2] for image in images], float)
        rows = np.arange(len(images))
        return Thumbnails(pixels, rows, size.min(axis=1), size[:, 0] == size[:, 1])


def make_thumbnails(image: np.ndarray) -> np.ndarray:
    """uint8 (1 or 2, size, size): the center square; unless square, also the image squashed."""
    gray = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    height, width = gray.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    center = resize(gray[top : top + side, left : left + side], THUMBNAIL_SIZE)
    return np.stack([center] if height == width else [center, resize(gray, THUMBNAIL_SIZE)])


def stack_thumbnails(thumbnails: list[np.ndarray | None]) -> np.ndarray:
    """(n, views, side, side) of thumbnails (1 or 2, side, side), 0 where there are none."""
    count = max((len(views) for views in thumbnails if views is not None), default=1)
    stacked = np.zeros((len(thumbnails), count, THUMBNAIL_SIZE, THUMBNAIL_SIZE), np.uint8)
    for target, views in zip(stacked, thumbnails, strict=True):
        if views is not None:
            target[: len(views)] = views
    return stacked


def simulate_copy(
    image: np.ndarray, rng: np.random.Generator, crop: bool, original_side: float
) -> np.ndarray:
    """A thumbnail, randomly changed as by offline augmentation: pose, brightness, blur, JPEG.

    Compression of the original changes its thumbnail less the larger the original is. An original
    that is smaller than a thumbnail is changed before it is magnified.
    """
    side = int(np.clip(original_side, 48, THUMBNAIL_SIZE))
    zoom = rng.uniform(1.0, 1.17) if crop else 1.0
    degrees = 90.0 * rng.integers(4) + rng.choice([0.0, rng.uniform(-20, 20)])
    matrix = pose_matrix(degrees, bool(rng.integers(2)), zoom, side)
    matrix[:, 2] += rng.uniform(-0.5, 0.5, 2) * (zoom - 1) * side
    copy = cv2.warpAffine(resize(image, side), matrix, (side, side))
    if rng.integers(2):
        copy = cv2.convertScaleAbs(copy, alpha=rng.uniform(0.8, 1.25), beta=rng.uniform(-20, 20))
    if rng.integers(2):
        copy = cv2.GaussianBlur(copy, (0, 0), rng.uniform(0.3, 0.9))
    scale = float(np.clip(original_side / THUMBNAIL_SIZE - 1, 0, 1))
    quality = int(rng.uniform(40 + 45 * scale, 90 + 9 * scale))
    data = cv2.imencode(".jpg", copy, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return resize(np.asarray(cv2.imdecode(data, cv2.IMREAD_GRAYSCALE)), THUMBNAIL_SIZE)
