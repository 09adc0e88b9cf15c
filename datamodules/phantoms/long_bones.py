"""Generated films of long bones: whole, simply broken, or broken into pieces."""

from dataclasses import dataclass

import numpy as np

from datamodules.phantoms.drawing import Dice, Drawn, box_of, exposed, grid, softened, turned

FRACTURES = ["none", "simple", "comminuted"]


@dataclass(frozen=True)
class Bone:
    """What stays the same in all films of one bone; lengths in drawing units."""

    half_width: int
    cortex: int
    flesh: int
    flare: int

    @staticmethod
    def of(dice: Dice) -> "Bone":
        """A bone by chance."""
        half_width = dice.between(100, 150)
        return Bone(
            half_width,
            cortex=dice.between(28, 44),
            flesh=half_width + dice.between(60, 220),
            flare=dice.between(0, 90),
        )


def fracture(label: int, patient: Dice, film: Dice, size: int) -> Drawn:
    """One film and the box of its lesion; ``patient`` decides the bone, ``film`` the pose."""
    bone = Bone.of(patient)
    x, y = grid(size)
    x, y = x - film.between(-90, 90), y - film.between(-90, 90)
    along, across = turned(x, y, film.between(0, 359))
    across, gap = _broken(label, along, across, bone, film)
    density, gap = _density(along, across, gap, bone)
    return Drawn(exposed(softened(density), film, noise=12), box_of(gap))


def _density(
    along: np.ndarray, across: np.ndarray, gap: np.ndarray, bone: Bone
) -> tuple[np.ndarray, np.ndarray]:
    """Flesh, marrow and cortex; and the part of the gap that lies in bone."""
    half = bone.half_width + np.maximum(0, np.abs(along) - 250) * bone.flare // 256
    depth = half - np.abs(across)
    density = np.where(np.abs(across) < bone.flesh + (half - bone.half_width), 70, 12)
    density = np.where(depth > 0, 190, density)
    density = np.where(depth > bone.cortex, 140, density)
    gap = gap & (depth > 0)
    return np.where(gap, 74, density).astype(np.int32), gap


def _broken(
    label: int, along: np.ndarray, across: np.ndarray, bone: Bone, dice: Dice
) -> tuple[np.ndarray, np.ndarray]:
    """Where the pieces have gone, and the gaps between them."""
    if label == 0:
        return across, np.zeros(along.shape, dtype=bool)
    middle, half_gap = dice.between(-160, 160), dice.between(16, 26)
    if label == 1:
        cut = along - middle - across * dice.between(-140, 140) // 256
        return across - np.where(cut > 0, dice.sign() * dice.between(0, 40), 0), abs(cut) < half_gap
    return _shattered(along, across, dice, middle, half_gap)


def _shattered(
    along: np.ndarray, across: np.ndarray, dice: Dice, middle: int, half_gap: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two cuts with two or three pieces between them, each out of place."""
    reach = dice.between(90, 140)
    first = along - middle + reach - across * dice.between(-90, 90) // 256
    last = along - middle - reach - across * dice.between(-90, 90) // 256
    split = across - dice.between(-30, 30) - along * dice.between(-60, 60) // 256
    between = (first > 0) & (last < 0)
    gap = (abs(first) < half_gap) | (abs(last) < half_gap) | (between & (abs(split) < half_gap))
    side = np.where(split > 0, dice.between(10, 45), -dice.between(10, 45))
    moved = np.where(last > 0, dice.sign() * dice.between(0, 40), np.where(between, side, 0))
    return across - moved, gap
