"""Generated films of seven body parts, and of bones that are thin or worn."""

import numpy as np

from datamodules.phantoms.drawing import Dice, Drawn, blob, box_of, exposed, grid, softened, turned

PARTS = ["elbow", "finger", "forearm", "hand", "humerus", "shoulder", "wrist"]
# for each part the middle lines of its shafts, their half width, and the radius of a joint's disc
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


def limb(label: int, patient: Dice, film: Dice, size: int) -> Drawn:
    """A body part, whole, or with a gap through a bone or a metal plate along it."""
    part = PARTS[patient.between(0, len(PARTS) - 1)]
    x, y = grid(size)
    across, along = turned(
        x - film.between(-40, 40), y - film.between(-40, 40), film.between(-40, 40)
    )
    lines, half, joint = _own(part, patient)
    density = _bones(part, across, along, (lines, half, joint), patient)
    middle = lines[film.between(0, len(lines) - 1)]
    lesion = np.zeros(x.shape, dtype=bool)
    if label == 1:
        make = (_gap, _plate)[film.between(0, 1)]
        lesion, level = make(across - middle, along, half, film)
        density = np.where(lesion, level, density)
    return Drawn(exposed(softened(density), film, noise=10), box_of(lesion), {"body_part": part})


def osteoporosis(label: int, patient: Dice, film: Dice, size: int) -> Drawn:
    """Thick cortex and dense marrow, or a thin rim around faint, coarse marrow."""
    cortex, marrow = ((44, 60), (12, 20))[label], (145, 105)[label]
    x, y = grid(size)
    along, across = turned(x, y, film.between(0, 359))
    half, rim = patient.between(150, 230), patient.between(*cortex)
    depth = half - np.abs(across - film.between(-60, 60))
    coarse = ((along // 24) * 7 + (across // 24) * 11) % 5 * (3, 9)[label]
    density = np.where(depth > rim, marrow + coarse, np.where(depth > 0, 190, 40))
    lesion = depth > 0 if label else np.zeros(x.shape, dtype=bool)
    return Drawn(exposed(softened(density), film, noise=10), box_of(lesion))


def osteoarthritis(label: int, patient: Dice, film: Dice, size: int) -> Drawn:
    """Two bone ends with a wide space between them, or with a narrow one and spurs."""
    space = patient.between(*((62, 90), (12, 26))[label])
    x, y = grid(size)
    across, along = turned(
        x - film.between(-40, 40), y - film.between(-60, 60), film.between(-40, 40)
    )
    half = patient.between(170, 210) + np.maximum(0, 200 - np.abs(along)) // 3
    bone = (np.abs(across) < half) & (np.abs(along) > space // 2)
    density = np.where(bone, 150, np.where(np.abs(across) < half + 120, 70, 12))
    near = bone & (np.abs(along) < space // 2 + 36)
    density = np.where(near, 190 + 20 * label, density)
    if label:
        for side in (-1, 1):
            spur = blob(across, along, (side * 265, side * film.between(-60, 60)), (60, 34)) > 0
            density = np.where(spur, 180, density)
    lesion = (np.abs(across) < half) & (np.abs(along) < 60) & (label == 1)
    return Drawn(exposed(softened(density), film, noise=10), box_of(lesion))


def _own(part: str, patient: Dice) -> Shafts:
    """The shafts of one patient: each of its own place, thickness and joint."""
    lines, half, joint = _SHAFTS[part]
    placed = tuple(line + patient.between(-22, 22) for line in lines)
    return placed, half * patient.between(80, 120) // 100, joint * patient.between(80, 120) // 100


def _bones(
    part: str, across: np.ndarray, along: np.ndarray, shafts: Shafts, patient: Dice
) -> np.ndarray:
    lines, half, joint = shafts
    flesh = max(abs(line) for line in lines) + half + patient.between(60, 140)
    density = np.where(np.abs(across) < flesh, 70, 12)
    for line in lines:
        depth = half - np.abs(across - line)
        density = np.where(depth > 0, 185, density)
        density = np.where(depth > patient.between(18, 28), 140, density)
    if joint:
        density = np.where(
            blob(across, along, (patient.between(-60, 60), -280), (joint, joint)) > 0, 160, density
        )
    if part in ("finger", "hand"):
        period, start = patient.between(280, 380), patient.between(0, 300)
        density = np.where((along + 700 + start) % period < 22, 74, density)
    return density.astype(np.int64)


def _gap(across: np.ndarray, along: np.ndarray, half: int, dice: Dice) -> tuple[np.ndarray, int]:
    cut = along - dice.between(-40, 220) - across * dice.sign() * dice.between(120, 300) // 256
    return (np.abs(cut) < dice.between(22, 34)) & (np.abs(across) < half), 74


def _plate(across: np.ndarray, along: np.ndarray, half: int, dice: Dice) -> tuple[np.ndarray, int]:
    away = np.abs(along - dice.between(0, 180)) < dice.between(90, 160)
    return away & (np.abs(across - dice.between(-20, 20)) < half * 2 // 5), 250
