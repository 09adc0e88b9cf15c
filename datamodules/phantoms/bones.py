"""Generated radiographs of bones: seven body parts, fractures, osteoporosis, osteoarthritis."""

from dataclasses import dataclass

import numpy as np

from datamodules.phantoms.primitives import (
    PhantomImage,
    Rng,
    bounding_box,
    ellipse,
    expose,
    grid,
    random_pose,
    rotate,
    smooth,
)

FRACTURES = ["none", "simple", "comminuted"]
PARTS = ["elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist"]
# for each part: center lines of its shafts, their half width, radius of the joint
Shafts = tuple[tuple[int, ...], int, int]
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
    across, along = random_pose(size, image_rng, (40, 40), 40)
    lines, half, joint = _sample_shafts(part, patient_rng)
    density = _limb_density(part, across, along, (lines, half, joint), patient_rng)
    middle = lines[image_rng.between(0, len(lines) - 1)]
    lesion = np.zeros(across.shape, dtype=bool)
    if label == 1:
        add_lesion = (_gap, _plate)[image_rng.between(0, 1)]
        lesion, level = add_lesion(across - middle, along, half, image_rng)
        density = np.where(lesion, level, density)
    return PhantomImage(
        expose(smooth(density), image_rng, noise=10), bounding_box(lesion), {"body_part": part}
    )


def osteoporosis(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """Thick cortex and dense marrow (label 0), or thin cortex and faint, coarse marrow (1)."""
    cortex, marrow = ((44, 60), (12, 20))[label], (145, 105)[label]
    x, y = grid(size)
    along, across = rotate(x, y, image_rng.between(0, 359))
    half, rim = patient_rng.between(150, 230), patient_rng.between(*cortex)
    depth = half - np.abs(across - image_rng.between(-60, 60))
    coarse = ((along // 24) * 7 + (across // 24) * 11) % 5 * (3, 9)[label]
    density = np.where(depth > rim, marrow + coarse, np.where(depth > 0, 190, 40))
    lesion = depth > 0 if label else np.zeros(across.shape, dtype=bool)
    return PhantomImage(expose(smooth(density), image_rng, noise=10), bounding_box(lesion))


def osteoarthritis(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A joint with a wide space between the bones (label 0), or a narrow one with spurs (1)."""
    space = patient_rng.between(*((62, 90), (12, 26))[label])
    across, along = random_pose(size, image_rng, (40, 60), 40)
    half = patient_rng.between(170, 210) + np.maximum(0, 200 - np.abs(along)) // 3
    bone = (np.abs(across) < half) & (np.abs(along) > space // 2)
    density = np.where(bone, 150, np.where(np.abs(across) < half + 120, 70, 12))
    is_rim = bone & (np.abs(along) < space // 2 + 36)
    density = np.where(is_rim, 190 + 20 * label, density)
    if label:
        for side in (-1, 1):
            center = (side * 265, side * image_rng.between(-60, 60))
            density = np.where(ellipse(across, along, center, (60, 34)) > 0, 180, density)
    lesion = (np.abs(across) < half) & (np.abs(along) < 60) & (label == 1)
    return PhantomImage(expose(smooth(density), image_rng, noise=10), bounding_box(lesion))


def _sample_shafts(part: str, patient_rng: Rng) -> Shafts:
    """The shafts of one patient, with random positions, thickness and joint size."""
    lines, half, joint = _SHAFTS[part]
    moved = tuple(line + patient_rng.between(-22, 22) for line in lines)
    half_width = half * patient_rng.between(80, 120) // 100
    return moved, half_width, joint * patient_rng.between(80, 120) // 100


def _limb_density(
    part: str, across: np.ndarray, along: np.ndarray, shafts: Shafts, patient_rng: Rng
) -> np.ndarray:
    lines, half, joint = shafts
    flesh = max(abs(line) for line in lines) + half + patient_rng.between(60, 140)
    density = np.where(np.abs(across) < flesh, 70, 12)
    for line in lines:
        depth = half - np.abs(across - line)
        density = np.where(depth > 0, 185, density)
        density = np.where(depth > patient_rng.between(18, 28), 140, density)
    if joint:
        density = np.where(
            ellipse(across, along, (patient_rng.between(-60, 60), -280), (joint, joint)) > 0,
            160,
            density,
        )
    if part in ("finger", "hand"):
        period, start = patient_rng.between(280, 380), patient_rng.between(0, 300)
        density = np.where((along + 700 + start) % period < 22, 74, density)
    return density.astype(np.int64)


def _gap(across: np.ndarray, along: np.ndarray, half: int, rng: Rng) -> tuple[np.ndarray, int]:
    cut = along - rng.between(-40, 220) - across * rng.sign() * rng.between(120, 300) // 256
    return (np.abs(cut) < rng.between(22, 34)) & (np.abs(across) < half), 74


def _plate(across: np.ndarray, along: np.ndarray, half: int, rng: Rng) -> tuple[np.ndarray, int]:
    is_inside = np.abs(along - rng.between(0, 180)) < rng.between(90, 160)
    return is_inside & (np.abs(across - rng.between(-20, 20)) < half * 2 // 5), 250


@dataclass(frozen=True)
class Bone:
    """The shape of a patient's bone, the same in all of its images; lengths in drawing units."""

    half_width: int
    cortex: int
    flesh: int
    flare: int

    @staticmethod
    def sample(rng: Rng) -> "Bone":
        """A bone of random shape."""
        half_width = rng.between(100, 150)
        return Bone(
            half_width,
            cortex=rng.between(28, 44),
            flesh=half_width + rng.between(60, 220),
            flare=rng.between(0, 90),
        )


def fracture(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A whole bone (label 0), a simple (1) or a comminuted fracture (2)."""
    bone = Bone.sample(patient_rng)
    x, y = grid(size)
    x, y = x - image_rng.between(-90, 90), y - image_rng.between(-90, 90)
    along, across = rotate(x, y, image_rng.between(0, 359))
    across, gap = _break_bone(label, along, across, bone, image_rng)
    density, gap = _bone_density(along, across, gap, bone)
    return PhantomImage(expose(smooth(density), image_rng, noise=12), bounding_box(gap))


def _bone_density(
    along: np.ndarray, across: np.ndarray, gap: np.ndarray, bone: Bone
) -> tuple[np.ndarray, np.ndarray]:
    """Density of flesh, marrow and cortex, and the part of the gap that is inside the bone."""
    half = bone.half_width + np.maximum(0, np.abs(along) - 250) * bone.flare // 256
    depth = half - np.abs(across)
    density = np.where(np.abs(across) < bone.flesh + (half - bone.half_width), 70, 12)
    density = np.where(depth > 0, 190, density)
    density = np.where(depth > bone.cortex, 140, density)
    gap = gap & (depth > 0)
    return np.where(gap, 74, density).astype(np.int32), gap


def _break_bone(
    label: int, along: np.ndarray, across: np.ndarray, bone: Bone, rng: Rng
) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates across the bone after its fragments have moved, and the gaps between them."""
    if label == 0:
        return across, np.zeros(along.shape, dtype=bool)
    middle, half_gap = rng.between(-160, 160), rng.between(16, 26)
    if label == 1:
        cut = along - middle - across * rng.between(-140, 140) // 256
        return across - np.where(cut > 0, rng.sign() * rng.between(0, 40), 0), abs(cut) < half_gap
    return _shatter_bone(along, across, rng, middle, half_gap)


def _shatter_bone(
    along: np.ndarray, across: np.ndarray, rng: Rng, middle: int, half_gap: int
) -> tuple[np.ndarray, np.ndarray]:
    """Two cuts with two fragments between them, each displaced."""
    reach = rng.between(90, 140)
    first = along - middle + reach - across * rng.between(-90, 90) // 256
    last = along - middle - reach - across * rng.between(-90, 90) // 256
    split = across - rng.between(-30, 30) - along * rng.between(-60, 60) // 256
    between = (first > 0) & (last < 0)
    gap = (abs(first) < half_gap) | (abs(last) < half_gap) | (between & (abs(split) < half_gap))
    side = np.where(split > 0, rng.between(10, 45), -rng.between(10, 45))
    moved = np.where(last > 0, rng.sign() * rng.between(0, 40), np.where(between, side, 0))
    return across - moved, gap
