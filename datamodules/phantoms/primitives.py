"""Random numbers, shapes and exposure of generated images, in integer arithmetic.

The same seed gives the same pixels on every machine: numpy guarantees the raw words of its bit
generator, sines are rounded once to twelve bits, and everything else is integers.
"""

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np

UNIT = 1024  # side of an image in drawing units, whatever its size in pixels


@dataclass(frozen=True, eq=False)
class PhantomImage:
    """Pixels, the box around all lesions ("" without lesions), and further attributes."""

    pixels: np.ndarray
    box: str
    attributes: dict[str, str] = field(default_factory=dict)


class Rng:
    """A random number generator, seeded by a text."""

    def __init__(self, text: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))

    def between(self, low: int, high: int) -> int:
        """A random integer from low to high, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def sign(self) -> int:
        """-1 or 1, equally likely."""
        return 2 * self.between(0, 1) - 1

    def choice(self, *weights: int) -> int:
        """A random position in ``weights``, with probabilities proportional to them."""
        number = self.between(1, sum(weights))
        return next(k for k in range(len(weights)) if number <= sum(weights[: k + 1]))

    def noise(self, size: int) -> np.ndarray:
        """(size, size) bell-shaped integers with mean 0 and a standard deviation of about 148."""
        raw = np.asarray(self._bits.random_raw((size, size)), dtype=np.uint64)
        parts = [((raw >> np.uint64(8 * k)) & np.uint64(255)).astype(np.int32) for k in range(4)]
        return np.asarray(sum(parts[1:], parts[0]) - 510)


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of each pixel center in drawing units; the image center is (0, 0)."""
    line = (2 * np.arange(size, dtype=np.int32) + 1 - size) * (UNIT // 2) // size
    x, y = np.meshgrid(line, line)
    return x, y


def rotate(x: np.ndarray, y: np.ndarray, degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of the points along and across an axis at this angle."""
    angle = math.radians(degrees)
    c, s = round(4096 * math.cos(angle)), round(4096 * math.sin(angle))
    return (c * x + s * y) >> 12, (c * y - s * x) >> 12


def random_pose(
    size: int, rng: Rng, shift: tuple[int, int], degrees: int
) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of the pixels after a random shift, then a random rotation, up to these limits."""
    x, y = grid(size)
    x, y = x - rng.between(-shift[0], shift[0]), y - rng.between(-shift[1], shift[1])
    return rotate(x, y, rng.between(-degrees, degrees))


def smooth(image: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 neighbors, weighted 1 2 1."""
    p = np.pad(image, 1, mode="edge")
    p = p[:-2] + 2 * p[1:-1] + p[2:]
    return np.asarray((p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) >> 4)


def expose(image: np.ndarray, rng: Rng, noise: int) -> np.ndarray:
    """uint8 image of a density map (0 to 255) with random gain, offset, gradient and noise."""
    x, y = grid(len(image))
    slope = (rng.between(-24, 24) * x + rng.between(-24, 24) * y) // UNIT
    level = image * rng.between(140, 280) // 256 + rng.between(0, 40) + slope
    grain = rng.noise(len(image)) * rng.between(noise // 3, noise) // 148
    return np.asarray(np.clip(level + grain, 0, 255), dtype=np.uint8)


def radiograph(density: np.ndarray, lesion: np.ndarray, rng: Rng, noise: int) -> PhantomImage:
    """The image of a density map, with the box around the mask ``lesion``."""
    return PhantomImage(expose(smooth(density), rng, noise), bounding_box(lesion))


def bounding_box(mask: np.ndarray) -> str:
    """The smallest ``x0,y0,x1,y1`` around a mask, ends excluded; "" for an empty mask."""
    ys, xs = np.nonzero(mask)
    return f"{xs.min()},{ys.min()},{xs.max() + 1},{ys.max() + 1}" if len(ys) else ""


def ellipse(
    x: np.ndarray, y: np.ndarray, center: tuple[int, int], radii: tuple[int, int]
) -> np.ndarray:
    """int64 map: 1024 in the center of an ellipse, 0 at its rim, negative outside."""
    across = (x - center[0]).astype(np.int64) ** 2 * 1024 // radii[0] ** 2
    down = (y - center[1]).astype(np.int64) ** 2 * 1024 // radii[1] ** 2
    return np.asarray(1024 - across - down)


def add_bump(image: np.ndarray, ellipse_map: np.ndarray, height: int) -> np.ndarray:
    """The image plus a bump: ``height`` in the center of an ``ellipse``, 0 at its rim."""
    return np.asarray(image + np.clip(ellipse_map, 0, 1024) * height // 1024)
