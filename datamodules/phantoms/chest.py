"""Generated chest films: two lungs, ribs, a heart, and what may be wrong with them."""

import numpy as np

from datamodules.phantoms.drawing import (
    Dice,
    Drawn,
    blob,
    box_of,
    exposed,
    grid,
    raised,
    softened,
    turned,
)

DISEASES = ["normal", "tuberculosis", "pneumonia", "covid"]
Spots = list[tuple[tuple[int, int], tuple[int, int], int]]


def chest(label: int, patient: Dice, film: Dice, size: int) -> Drawn:
    """Normal, nodules high up, one dense lower lobe, or patches at the rim of both lungs."""
    spots = (_none, _nodules, _consolidation, _patches)[label](film)
    return _film(patient, film, size, spots, heart=patient.between(150, 185))


def pneumonia(label: int, patient: Dice, film: Dice, size: int) -> Drawn:
    """Normal, or one dense lower lobe."""
    spots = (_none, _consolidation)[label](film)
    return _film(patient, film, size, spots, heart=patient.between(150, 185))


def cardiomegaly(label: int, patient: Dice, film: Dice, size: int) -> Drawn:
    """The heart is wider than half the chest, or it is not."""
    heart = patient.between(*((140, 185), (250, 300))[label])
    return _film(patient, film, size, [], heart, lesion_is_heart=label == 1)


def _film(
    patient: Dice, film: Dice, size: int, spots: Spots, heart: int, lesion_is_heart: bool = False
) -> Drawn:
    x, y = grid(size)
    x, y = turned(x - film.between(-40, 40), y - film.between(-40, 40), film.between(-8, 8))
    density, lungs = _body(x, y, patient)
    beat = blob(x, y, (60, 170), (heart, 190))
    density = np.where(beat > 0, 150, density)
    lesions = (beat > 0) if lesion_is_heart else np.zeros(x.shape, dtype=bool)
    for at, radii, height in spots:
        spot = blob(x, y, at, radii)
        density = np.where(lungs, raised(density, spot, height), density)
        lesions |= lungs & (spot > 200)
    pixels = exposed(softened(softened(density)), film, noise=9)
    return Drawn(pixels, box_of(lesions))


def _body(x: np.ndarray, y: np.ndarray, patient: Dice) -> tuple[np.ndarray, np.ndarray]:
    wide, high = patient.between(165, 195), patient.between(330, 380)
    lungs = np.zeros(x.shape, dtype=bool)
    for side in (-1, 1):
        lungs |= blob(x, y, (side * 225, 0), (wide, high)) > 0
    density = np.where(lungs, 55, 150)
    ribs = (y + x.astype(np.int64) ** 2 // 700 + patient.between(0, 90)) % 110 < 30
    return np.where(ribs & (np.abs(x) > 60), density + 22, density).astype(np.int64), lungs


def _none(dice: Dice) -> Spots:
    return []


def _nodules(dice: Dice) -> Spots:
    side = dice.sign()
    places = [(side * dice.between(140, 300), dice.between(-280, -120)) for _ in range(4)]
    return [(at, (dice.between(40, 60),) * 2, 95) for at in places]


def _consolidation(dice: Dice) -> Spots:
    at = (dice.sign() * dice.between(190, 260), dice.between(110, 220))
    return [(at, (dice.between(120, 160), dice.between(110, 160)), 95)]


def _patches(dice: Dice) -> Spots:
    places = [(side * dice.between(290, 350), dice.between(-100, 240)) for side in (-1, 1, -1, 1)]
    return [(at, (dice.between(60, 90), dice.between(80, 120)), 75) for at in places]
