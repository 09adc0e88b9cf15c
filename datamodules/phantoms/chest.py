"""Generated chest radiographs: lungs, ribs and heart, with or without a disease."""

import numpy as np

from datamodules.phantoms.primitives import (
    PhantomImage,
    Rng,
    add_bump,
    bounding_box,
    ellipse,
    expose,
    random_pose,
    smooth,
)

DISEASES = ["normal", "tuberculosis", "pneumonia", "covid"]
Spots = list[tuple[tuple[int, int], tuple[int, int], int]]


def chest(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """Normal, nodules in the upper lung, one dense lower lobe, or patches at both lung margins."""
    spots = (_none, _nodules, _consolidation, _patches)[label](image_rng)
    return _chest_image(patient_rng, image_rng, size, spots, heart=patient_rng.between(150, 185))


def pneumonia(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """Normal, or one dense lower lobe."""
    spots = (_none, _consolidation)[label](image_rng)
    return _chest_image(patient_rng, image_rng, size, spots, heart=patient_rng.between(150, 185))


def cardiomegaly(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A normal heart (label 0), or one that is wider than half the chest (1)."""
    heart = patient_rng.between(*((140, 185), (250, 300))[label])
    return _chest_image(patient_rng, image_rng, size, [], heart, lesion_is_heart=label == 1)


def _chest_image(
    patient_rng: Rng,
    image_rng: Rng,
    size: int,
    spots: Spots,
    heart: int,
    lesion_is_heart: bool = False,
) -> PhantomImage:
    x, y = random_pose(size, image_rng, (40, 40), 8)
    density, lungs = _thorax(x, y, patient_rng)
    heart_shape = ellipse(x, y, (60, 170), (heart, 190))
    density = np.where(heart_shape > 0, 150, density)
    lesions = (heart_shape > 0) if lesion_is_heart else np.zeros(x.shape, dtype=bool)
    for center, radii, height in spots:
        spot = ellipse(x, y, center, radii)
        density = np.where(lungs, add_bump(density, spot, height), density)
        lesions |= lungs & (spot > 200)
    pixels = expose(smooth(smooth(density)), image_rng, noise=9)
    return PhantomImage(pixels, bounding_box(lesions))


def _thorax(x: np.ndarray, y: np.ndarray, patient_rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    width, height = patient_rng.between(165, 195), patient_rng.between(330, 380)
    lungs = np.zeros(x.shape, dtype=bool)
    for side in (-1, 1):
        lungs |= ellipse(x, y, (side * 225, 0), (width, height)) > 0
    density = np.where(lungs, 55, 150)
    ribs = (y + x.astype(np.int64) ** 2 // 700 + patient_rng.between(0, 90)) % 110 < 30
    return np.where(ribs & (np.abs(x) > 60), density + 22, density).astype(np.int64), lungs


def _none(rng: Rng) -> Spots:
    return []


def _nodules(rng: Rng) -> Spots:
    side = rng.sign()
    centers = [(side * rng.between(140, 300), rng.between(-280, -120)) for _ in range(4)]
    return [(center, (rng.between(40, 60),) * 2, 95) for center in centers]


def _consolidation(rng: Rng) -> Spots:
    center = (rng.sign() * rng.between(190, 260), rng.between(110, 220))
    return [(center, (rng.between(120, 160), rng.between(110, 160)), 95)]


def _patches(rng: Rng) -> Spots:
    centers = [(side * rng.between(290, 350), rng.between(-100, 240)) for side in (-1, 1, -1, 1)]
    return [(center, (rng.between(60, 90), rng.between(80, 120)), 75) for center in centers]
