"""Integer tools for generated pictures: the same seed gives the same pixels on every machine.

Nothing here depends on how a machine rounds: chance comes from the raw words of a bit generator,
whose stream numpy keeps for good, sines are rounded once to twelve bits, all else is integers.
"""

import hashlib
import math
from dataclasses import dataclass, field

import numpy as np

UNIT = 1024  # side of a picture in drawing units, whatever its size in pixels


@dataclass(frozen=True, eq=False)
class Drawn:
    """A picture with the box of its lesions (empty when there are none) and further attributes."""

    pixels: np.ndarray
    box: str
    attributes: dict[str, str] = field(default_factory=dict)


class Dice:
    """Chance as a function of a text.

    Args:
        text: What this chance is for; another text, other throws.
    """

    def __init__(self, text: str) -> None:
        self._bits = np.random.PCG64(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16]))

    def between(self, low: int, high: int) -> int:
        """An integer from low to high, both included."""
        return low + int(self._bits.random_raw()) % (high - low + 1)

    def sign(self) -> int:
        """-1 or 1."""
        return 2 * self.between(0, 1) - 1

    def share(self, *parts: int) -> int:
        """Which of several parts, each as likely as it is large."""
        throw = self.between(1, sum(parts))
        return next(k for k in range(len(parts)) if throw <= sum(parts[: k + 1]))

    def noise(self, size: int) -> np.ndarray:
        """(size, size) bell-shaped integers with mean 0 and a standard deviation of about 148."""
        words = np.asarray(self._bits.random_raw((size, size)), dtype=np.uint64)
        parts = [((words >> np.uint64(8 * k)) & np.uint64(255)).astype(np.int32) for k in range(4)]
        return np.asarray(sum(parts[1:], parts[0]) - 510)


def turn(degrees: int) -> tuple[int, int]:
    """Cosine and sine times 4096."""
    angle = math.radians(degrees)
    return round(4096 * math.cos(angle)), round(4096 * math.sin(angle))


def grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """(x, y) of each pixel's center in drawing units, the picture's middle being (0, 0)."""
    line = (2 * np.arange(size, dtype=np.int32) + 1 - size) * (UNIT // 2) // size
    x, y = np.meshgrid(line, line)
    return x, y


def turned(x: np.ndarray, y: np.ndarray, degrees: int) -> tuple[np.ndarray, np.ndarray]:
    """The same points along and across an axis that stands at this angle."""
    c, s = turn(degrees)
    return (c * x + s * y) >> 12, (c * y - s * x) >> 12


def softened(picture: np.ndarray) -> np.ndarray:
    """Mean over 3 x 3 neighbors, weighted 1 2 1."""
    p = np.pad(picture, 1, mode="edge")
    p = p[:-2] + 2 * p[1:-1] + p[2:]
    return np.asarray((p[:, :-2] + 2 * p[:, 1:-1] + p[:, 2:]) >> 4)


def exposed(picture: np.ndarray, dice: Dice, noise: int) -> np.ndarray:
    """uint8 film of a density map (0 to 255) under random gain, offset, slope and grain."""
    x, y = grid(len(picture))
    slope = (dice.between(-24, 24) * x + dice.between(-24, 24) * y) // UNIT
    level = picture * dice.between(140, 280) // 256 + dice.between(0, 40) + slope
    grain = dice.noise(len(picture)) * dice.between(noise // 3, noise) // 148
    return np.asarray(np.clip(level + grain, 0, 255), dtype=np.uint8)


def box_of(mask: np.ndarray) -> str:
    """The smallest ``x0,y0,x1,y1`` around a mask, ends excluded; empty when the mask is."""
    ys, xs = np.nonzero(mask)
    if not len(ys):
        return ""
    return f"{xs.min()},{ys.min()},{xs.max() + 1},{ys.max() + 1}"


def blob(x: np.ndarray, y: np.ndarray, at: tuple[int, int], radii: tuple[int, int]) -> np.ndarray:
    """1024 in the middle of an ellipse, 0 at its rim, negative outside."""
    across = (x - at[0]).astype(np.int64) ** 2 * 1024 // radii[0] ** 2
    down = (y - at[1]).astype(np.int64) ** 2 * 1024 // radii[1] ** 2
    return np.asarray(1024 - across - down)


def raised(picture: np.ndarray, where: np.ndarray, by: int) -> np.ndarray:
    """The picture plus a soft bump of this height over a ``blob``."""
    return np.asarray(picture + np.clip(where, 0, 1024) * by // 1024)
