"""Generated fundus photographs whose grade is a matter of counted lesions."""

import numpy as np

from datamodules.phantoms.drawing import Dice, Drawn, blob, box_of, grid, raised, softened, turned

GRADES = ["none", "mild", "moderate", "severe", "proliferative"]
_DOTS = ((0, 0), (2, 4), (7, 11), (16, 24), (10, 20))
_YELLOW = ((0, 0), (0, 0), (1, 3), (4, 7), (2, 6))


def retina(label: int, patient: Dice, film: Dice, size: int) -> Drawn:
    """One eye; grades differ in red dots, yellow spots and, in the last, pale new vessels."""
    x, y = grid(size)
    x, y = turned(x - film.between(-30, 30), y - film.between(-30, 30), film.between(-20, 20))
    tone, radius = patient.between(-20, 20), film.between(440, 490)
    level = np.full((size, size), 0, dtype=np.int64)
    dark, lesions = np.zeros_like(level), np.zeros(level.shape, dtype=bool)
    pale = raised(level, blob(x, y, (260 * patient.sign(), 0), (80, 90)), 110)
    dark = dark + _vessels(x, y, patient)
    counts = film.between(*_DOTS[label]), film.between(*_YELLOW[label])
    for _ in range(counts[0]):
        spot = blob(x, y, _somewhere(film), (film.between(22, 34),) * 2)
        dark, lesions = raised(dark, spot, 80), lesions | (spot > 0)
    for _ in range(counts[1]):
        spot = blob(x, y, _somewhere(film), (film.between(30, 55), film.between(30, 55)))
        pale, lesions = raised(pale, spot, 90), lesions | (spot > 0)
    if label == 4:
        tuft = _tuft(x, y, film)
        pale, lesions = pale + 100 * tuft, lesions | tuft
    disc = blob(x, y, (0, 0), (radius, radius)) > 0
    pixels = _colored(softened(pale), softened(dark), disc, tone, film)
    return Drawn(pixels, box_of(lesions & disc), {"lesions": str(sum(counts) + (label == 4))})


def _somewhere(dice: Dice) -> tuple[int, int]:
    return dice.between(-290, 290), dice.between(-290, 290)


def _vessels(x: np.ndarray, y: np.ndarray, dice: Dice) -> np.ndarray:
    dark = np.zeros(x.shape, dtype=np.int64)
    for _ in range(4):
        bend = dice.sign() * dice.between(300, 900)
        curve = y - dice.between(-220, 220) - x.astype(np.int64) ** 2 // bend
        dark = np.maximum(dark, np.where(np.abs(curve) < dice.between(8, 15), 45, 0))
    return dark


def _tuft(x: np.ndarray, y: np.ndarray, dice: Dice) -> np.ndarray:
    """A net of fine lines within a small disc."""
    at, reach = _somewhere(dice), dice.between(110, 150)
    u, v = turned(x - at[0], y - at[1], dice.between(0, 179))
    lines = (u % 56 < 18) | (v % 56 < 18)
    return np.asarray(lines & (blob(u, v, (0, 0), (reach, reach)) > 0))


def _colored(
    pale: np.ndarray, dark: np.ndarray, disc: np.ndarray, tone: int, dice: Dice
) -> np.ndarray:
    gain = dice.between(190, 280)
    grain = dice.noise(len(disc)) * dice.between(2, 6) // 148
    base = ((170 + tone, 1, 1), (80 + tone // 2, 1, 2), (40, 0, 2))
    planes = []
    for level, dimmed, lit in base:
        plane = (level + pale * lit // 2 - dark * dimmed) * gain // 256 + grain
        planes.append(np.where(disc, plane, np.abs(grain) // 2))
    return np.asarray(np.clip(np.stack(planes, axis=-1), 0, 255), dtype=np.uint8)
