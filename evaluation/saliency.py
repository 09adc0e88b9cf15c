"""Evaluation of saliency maps: pointing game, energy in a lesion's box, deletion and insertion."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.stats.estimate import Estimate, mean_estimate

FILE = "saliency.json"
SALIENCY_METHODS = (  # names as in pytorch-grad-cam
    "GradCAM", "GradCAM++", "XGradCAM", "HiResCAM", "LayerCAM", "EigenGradCAM", "EigenCAM",
    "ScoreCAM",
)  # fmt: skip
BOX_MARGIN = 0.05  # added to each side of a box, as a fraction of the image's long side
FRACTIONS = tuple(np.linspace(0.0, 1.0, 11).tolist())  # of pixels deleted or inserted
Box = tuple[int, int, int, int]
Score = Callable[[np.ndarray], np.ndarray]  # images (n, H, W, ...) -> probabilities (n,)


def parse_box(text: str) -> Box | None:
    """The box in a text `x0,y0,x1,y1`; None for an empty text; ValueError for others."""
    if not text or text == "nan":
        return None
    parts = text.split(",")
    if len(parts) != 4 or not all(part.strip().lstrip("-").isdigit() for part in parts):
        raise ValueError(f"box is {text!r}; it must be four whole numbers x0,y0,x1,y1")
    x0, y0, x1, y1 = (int(part) for part in parts)
    return x0, y0, x1, y1


def box_mask(box: Box, shape: tuple[int, ...], margin: float = BOX_MARGIN) -> np.ndarray:
    """Mask (H, W) of a box in an image of `shape`; `margin` is a fraction of its long side."""
    x0, y0, x1, y1 = box
    pixels = margin * max(shape[:2])
    y, x = np.ogrid[: shape[0], : shape[1]]
    in_columns = (x >= x0 - pixels) & (x < x1 + pixels)
    return np.asarray(in_columns & (y >= y0 - pixels) & (y < y1 + pixels))


def is_peak_inside(saliency_map: np.ndarray, mask: np.ndarray) -> bool:
    """Whether the maximum of a map (H, W) is inside a mask; False for an empty map."""
    if not saliency_map.max() > 0:
        return False
    peaks = np.argwhere(saliency_map >= saliency_map.max() * (1 - 1e-6))
    # of several equal maxima, the one nearest their mean
    y, x = peaks[np.hypot(*(peaks - peaks.mean(axis=0)).T).argmin()]
    return bool(mask[y, x])


def energy_inside(saliency_map: np.ndarray, mask: np.ndarray) -> float:
    """The fraction of a map's sum that is inside a mask, 0 to 1; 0 for an empty map."""
    total = float(saliency_map.sum())
    return float(saliency_map[mask].sum()) / total if total > 0 else 0.0


def top_pixels(saliency_map: np.ndarray) -> np.ndarray:
    """For each of `FRACTIONS`, a mask of that fraction of the pixels, with the largest values.

    Of shape (fractions, H, W); of equal values, pixels further up or left come first.
    """
    rank = np.argsort(-saliency_map.ravel(), kind="stable").argsort()
    counts = np.rint(np.asarray(FRACTIONS) * saliency_map.size)
    return np.asarray(rank.reshape(saliency_map.shape)[None] < counts[:, None, None])


def deletion_auc(
    score: Score, image: np.ndarray, baseline: np.ndarray, saliency_map: np.ndarray
) -> float:
    """Area under the class's probability as pixels are deleted, largest map values first.

    Deleted pixels become those of `baseline`, an image without information about the class such as
    a blurred copy. A small area means a faithful map (Petsiuk et al. 2018).
    """
    changed = top_pixels(saliency_map)
    changed = changed.reshape(*changed.shape, *([1] * (image.ndim - 2)))
    probabilities = score(np.where(changed, baseline[None], image[None]))
    return float(np.trapezoid(probabilities, FRACTIONS))


def insertion_auc(
    score: Score, image: np.ndarray, baseline: np.ndarray, saliency_map: np.ndarray
) -> float:
    """Like `deletion_auc`, with pixels inserted in the baseline; a large area means faithful."""
    return deletion_auc(score, baseline, image, saliency_map)


@dataclass(frozen=True)
class SaliencyScores:
    """Scores of the map of one image; `hit` and `energy` are None if the image has no box."""

    patient: str
    hit: bool | None
    energy: float | None
    deletion: float
    insertion: float


def saliency_estimates(scores: Sequence[SaliencyScores]) -> dict[str, Estimate]:
    """Means over images of pointing hits, energy in the box, deletion and insertion, by name."""
    boxed = [s for s in scores if s.hit is not None]
    patients, boxed_patients = (np.array([s.patient for s in part]) for part in (scores, boxed))
    hits = np.array([s.hit for s in boxed], dtype=bool)
    energy, missing = np.array([s.energy for s in boxed], dtype=float), "no image has a box"
    return {
        "pointing": mean_estimate(boxed_patients, hits, missing),
        "energy_in_box": mean_estimate(boxed_patients, energy, missing),
        "deletion": mean_estimate(patients, np.array([s.deletion for s in scores])),
        "insertion": mean_estimate(patients, np.array([s.insertion for s in scores])),
    }
