"""Whether a heat map says anything: where it points, and what its places are worth to a model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.stats.estimate import Estimate
from evaluation.stats.means import mean

FILE = "faithfulness.json"
GROWN = 0.05  # a box is grown by this share of the picture's long side
SHARES = tuple(np.linspace(0.0, 1.0, 11).tolist())
Box = tuple[int, int, int, int]
Score = Callable[[np.ndarray], np.ndarray]


def box_of(text: str) -> Box | None:
    """The box of an attribute `x0,y0,x1,y1`; None for an empty one."""
    if not text or text == "nan":
        return None
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().lstrip("-").isdigit() for part in parts):
        raise ValueError(f"box is {text!r}; it must be four whole numbers x0,y0,x1,y1")
    x0, y0, x1, y1 = (int(part) for part in parts)
    return x0, y0, x1, y1


def grown(box: Box, shape: tuple[int, ...], by: float = GROWN) -> np.ndarray:
    """The pixels (H, W) of a box that is grown on every side by a share of the long side."""
    x0, y0, x1, y1 = box
    margin = by * max(shape[:2])
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.asarray(
        (x >= x0 - margin) & (x < x1 + margin) & (y >= y0 - margin) & (y < y1 + margin)
    )


def points_into(heat: np.ndarray, inside: np.ndarray) -> bool:
    """Whether the map's peak lies inside; of several equal peaks their middle counts.

    An empty map points nowhere.
    """
    if not heat.max() > 0:
        return False
    peaks = np.argwhere(heat >= heat.max() * (1 - 1e-6))
    y, x = peaks[np.hypot(*(peaks - peaks.mean(axis=0)).T).argmin()]
    return bool(inside[y, x])


def energy_inside(heat: np.ndarray, inside: np.ndarray) -> float:
    """The share of the map's sum that lies inside; 0 for an empty map."""
    total = float(heat.sum())
    return float(heat[inside].sum()) / total if total > 0 else 0.0


def places(heat: np.ndarray, shares: Sequence[float] = SHARES) -> np.ndarray:
    """For each share, the pixels (shares, H, W) that the map holds to matter most.

    Counts are exact; ties go to the lower index, so an empty map takes away row by row.
    """
    order = np.argsort(-heat.ravel(), kind="stable")
    rank = np.empty(heat.size, dtype=np.int64)
    rank[order] = np.arange(heat.size)
    counts = np.rint(np.asarray(shares) * heat.size)
    return np.asarray(rank.reshape(heat.shape)[None] < counts[:, None, None])


def deletion(score: Score, picture: np.ndarray, blank: np.ndarray, heat: np.ndarray) -> float:
    """Area under the class's probability while the best places are blanked; low is faithful.

    `score` gives probabilities (n,) of pictures (n, H, W, ...); `blank` is what stands where
    the picture has been taken away, a blurred copy for instance.
    """
    return _area(score, picture, blank, places(heat))


def insertion(score: Score, picture: np.ndarray, blank: np.ndarray, heat: np.ndarray) -> float:
    """Area under the probability while the best places are put into the blank; high is faithful."""
    return _area(score, blank, picture, places(heat))


def _area(score: Score, start: np.ndarray, end: np.ndarray, taken: np.ndarray) -> float:
    taken = taken.reshape(*taken.shape, *([1] * (start.ndim - 2)))
    said = score(np.where(taken, end[None], start[None]))
    return float(np.trapezoid(said, SHARES))


@dataclass(frozen=True)
class Measured:
    """What was found for one picture; `hit` and `energy` are None where it has no box."""

    patient: str
    hit: bool | None
    energy: float | None
    deletion: float
    insertion: float


def figures(found: Sequence[Measured]) -> dict[str, Estimate]:
    """Pointing, energy in the box, deletion and insertion, with intervals over patients."""
    boxed = [one for one in found if one.hit is not None]
    patients, whose = (np.array([one.patient for one in each]) for each in (found, boxed))
    hits = np.array([one.hit for one in boxed], dtype=bool)
    energy = np.array([one.energy for one in boxed], dtype=float)
    return {
        "pointing": mean(whose, hits, "no picture has a box"),
        "energy_in_box": mean(whose, energy, "no picture has a box"),
        "deletion": mean(patients, np.array([one.deletion for one in found])),
        "insertion": mean(patients, np.array([one.insertion for one in found])),
    }
