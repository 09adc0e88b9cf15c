"""Generated radiographs of bones: seven body parts, fractures, osteoporosis, osteoarthritis."""

from dataclasses import replace

import numpy as np

from datamodules.phantoms import primitives as draw
from datamodules.phantoms.primitives import PhantomImage, Rng

FRACTURES = ["none", "simple", "comminuted"]
PARTS = ["elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist"]
Shape = tuple[int, int, int, int]  # half width, thicknesses of cortex and flesh, flare of the ends
Shafts = tuple[tuple[int, ...], int, int]  # their center lines, half width, radius of the joint
_SHAFTS: dict[str, Shafts] = {
    "elbow": ((-70, 90), 70, 170),
    "finger": ((0,), 75, 0),
    "forearm": ((-110, 110), 75, 0),
    "hand": ((-255, -85, 85, 255), 52, 0),
    "humerus": ((0,), 130, 0),
    "shoulder": ((40,), 105, 230),
    "wrist": ((-100, 100), 80, 120),
}


def limb(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A normal body part (label 0), or one with a gap or a metal plate in a bone (label 1)."""
    part = PARTS[patient_rng.between(0, len(PARTS) - 1)]
    across, along = draw.random_pose(size, image_rng, (40, 40), 40)
    lines, half, joint = _SHAFTS[part]
    lines = tuple(line + patient_rng.between(-22, 22) for line in lines)
    half = half * patient_rng.between(80, 120) // 100
    joint = joint * patient_rng.between(80, 120) // 100
    density = _limb_density(part, across, along, (lines, half, joint), patient_rng)
    middle = lines[image_rng.between(0, len(lines) - 1)]
    lesion = np.zeros(across.shape, dtype=bool)
    if label == 1:
        add_lesion = (_gap, _plate)[image_rng.between(0, 1)]
        lesion, level = add_lesion(across - middle, along, half, image_rng)
        density = np.where(lesion, level, density)
    image = draw.radiograph(density, lesion, image_rng, noise=10)
    return replace(image, attributes={"body_part": part})


def osteoporosis(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """Thick cortex and dense marrow (label 0), or thin cortex and faint, coarse marrow (1)."""
    cortex, level = ((44, 60), (12, 20))[label], (151, 123)[label]
    half, rim = patient_rng.between(150, 230), patient_rng.between(*cortex)
    shape = (half, rim, patient_rng.between(60, 220), patient_rng.between(0, 90))
    along, across = draw.random_pose(size, image_rng, (60, 60), 180)
    marrow = level + _trabeculae(along, across, patient_rng) * (4, 13)[label] // 148
    density, is_bone = _long_bone(along, across, shape, marrow)
    return draw.radiograph(density, is_bone & (label == 1), image_rng, noise=10)


def osteoarthritis(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A joint with a wide space between the bones (label 0), or a narrow one with spurs (1)."""
    space = patient_rng.between(*((62, 90), (12, 26))[label])
    across, along = draw.random_pose(size, image_rng, (40, 60), 40)
    half = patient_rng.between(170, 210) + np.maximum(0, 200 - np.abs(along)) // 3
    bone = (np.abs(across) < half) & (np.abs(along) > space // 2)
    density = np.where(bone, 150, np.where(np.abs(across) < half + 120, 70, 12))
    is_rim = bone & (np.abs(along) < space // 2 + 36)
    density = np.where(is_rim, 190 + 20 * label, density)
    if label:
        for side in (-1, 1):
            center = (side * 265, side * image_rng.between(-60, 60))
            density = np.where(draw.ellipse(across, along, center, (60, 34)) > 0, 180, density)
    lesion = (np.abs(across) < half) & (np.abs(along) < 60) & (label == 1)
    return draw.radiograph(density, lesion, image_rng, noise=10)


def _long_bone(
    along: np.ndarray, across: np.ndarray, shape: Shape, marrow: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Density of a bone that widens towards its ends, and which pixels are in the bone."""
    half, cortex, flesh, flare = shape
    depth = half + np.maximum(0, np.abs(along) - 250) * flare // 256 - np.abs(across)
    density = np.where(depth > -flesh, 70, 12)
    density = np.where(depth > 0, 190, density)
    return np.where(depth > cortex, marrow, density), depth > 0


def _trabeculae(along: np.ndarray, across: np.ndarray, patient_rng: Rng) -> np.ndarray:
    """Irregular struts of the width and direction of a patient, as ``Rng.noise``."""
    along, across = draw.rotate(along, across, patient_rng.between(-30, 30))
    width, length = patient_rng.between(16, 32), patient_rng.between(32, 64)
    return np.asarray(patient_rng.noise(64)[along // length % 64, across // width % 64])


def _limb_density(
    part: str, across: np.ndarray, along: np.ndarray, shafts: Shafts, patient_rng: Rng
) -> np.ndarray:
    """Density map of a normal body part: flesh, shafts and, in some parts, joints."""
    lines, half, joint = shafts
    flesh = max(abs(line) for line in lines) + half + patient_rng.between(60, 140)
    density = np.where(np.abs(across) < flesh, 70, 12)
    for line in lines:
        depth = half - np.abs(across - line)
        density = np.where(depth > 0, 185, density)
        density = np.where(depth > patient_rng.between(18, 28), 140, density)
    if joint:
        disc = draw.ellipse(across, along, (patient_rng.between(-60, 60), -280), (joint, joint)) > 0
        density = np.where(disc, 160, density)
    if part in ("finger", "hand"):
        period, start = patient_rng.between(280, 380), patient_rng.between(0, 300)
        density = np.where((along + 700 + start) % period < 22, 74, density)
    return density.astype(np.int64)


def _gap(across: np.ndarray, along: np.ndarray, half: int, rng: Rng) -> tuple[np.ndarray, int]:
    """Mask of an oblique gap in a shaft of this half width, and the density of the gap."""
    cut = along - rng.between(-40, 220) - across * rng.sign() * rng.between(120, 300) // 256
    return (np.abs(cut) < rng.between(22, 34)) & (np.abs(across) < half), 74


def _plate(across: np.ndarray, along: np.ndarray, half: int, rng: Rng) -> tuple[np.ndarray, int]:
    """Mask of a metal plate on a shaft of this half width, and the density of the plate."""
    is_inside = np.abs(along - rng.between(0, 180)) < rng.between(90, 160)
    return is_inside & (np.abs(across - rng.between(-20, 20)) < half * 2 // 5), 250


def fracture(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A whole bone (label 0), a simple (1) or a comminuted fracture (2)."""
    half, cortex = patient_rng.between(100, 150), patient_rng.between(28, 44)
    flesh, flare = patient_rng.between(60, 220), patient_rng.between(0, 90)
    x, y = draw.grid(size)
    x, y = x - image_rng.between(-90, 90), y - image_rng.between(-90, 90)
    along, across = draw.rotate(x, y, image_rng.between(0, 359))
    across, gap = _break_bone(label, along, across, image_rng)
    density, is_bone = _long_bone(along, across, (half, cortex, flesh, flare), 140)
    gap = gap & is_bone
    return draw.radiograph(np.where(gap, 74, density).astype(np.int32), gap, image_rng, noise=12)


def _break_bone(
    label: int, along: np.ndarray, across: np.ndarray, rng: Rng
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates across the bone after its fragments have moved, and the mask of the gaps."""
    if label == 0:
        return across, np.zeros(along.shape, dtype=bool)
    middle, half_gap = rng.between(-160, 160), rng.between(16, 26)
    if label == 1:
        cut = along - middle - across * rng.between(-140, 140) // 256
        return across - np.where(cut > 0, rng.sign() * rng.between(0, 40), 0), abs(cut) < half_gap
    # two cuts with two fragments between them, each displaced
    reach = rng.between(90, 140)
    first = along - middle + reach - across * rng.between(-90, 90) // 256
    last = along - middle - reach - across * rng.between(-90, 90) // 256
    split = across - rng.between(-30, 30) - along * rng.between(-60, 60) // 256
    between = (first > 0) & (last < 0)
    gap = (abs(first) < half_gap) | (abs(last) < half_gap) | (between & (abs(split) < half_gap))
    side = np.where(split > 0, rng.between(10, 45), -rng.between(10, 45))
    moved = np.where(last > 0, rng.sign() * rng.between(0, 40), np.where(between, side, 0))
    return across - moved, gap
