"""Generated chest radiographs and fundus photographs, with or without a disease."""

import numpy as np

from datamodules.phantoms import primitives as draw
from datamodules.phantoms.primitives import PhantomImage, Rng

DISEASES = ["normal", "tuberculosis", "pneumonia", "covid"]
FINDINGS = ["opacity", "nodules", "effusion", "pneumothorax", "cardiomegaly"]
GRADES = ["none", "mild", "moderate", "severe", "proliferative"]
_RED_DOTS = ((0, 0), (2, 4), (7, 11), (16, 24), (10, 20))  # lowest and highest number by grade
_YELLOW_SPOTS = ((0, 0), (0, 0), (1, 3), (4, 7), (2, 6))
Spots = list[tuple[tuple[int, int], tuple[int, int], int]]  # center, radii, height


def chest(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A chest: normal (0), upper nodules (1), a dense lower lobe (2), patches at margins (3)."""
    spots = _sample_spots(DISEASES[label], image_rng)
    return _chest_image(patient_rng, image_rng, size, spots, heart=patient_rng.between(150, 185))


def pneumonia(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A normal chest (label 0), or one with a dense lower lobe (1)."""
    return chest(DISEASES.index(("normal", "pneumonia")[label]), patient_rng, image_rng, size)


def cardiomegaly(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A chest with a normal heart (label 0), or a heart wider than half the chest (1)."""
    heart = patient_rng.between(*((140, 185), (250, 300))[label])
    return _chest_image(patient_rng, image_rng, size, [], heart, is_enlarged=label == 1)


def chest_findings(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A chest with any of five findings: bit k of `label` is that of `FINDINGS[k]`.

    The attribute `box/<finding>` is the box of one finding, "" if it is absent.
    """
    has = {name: label >> k & 1 == 1 for k, name in enumerate(FINDINGS)}
    x, y = draw.random_pose(size, image_rng, (40, 40), 8)
    density, lungs = _thorax(x, y, patient_rng)
    heart = patient_rng.between(*(250, 300) if has["cardiomegaly"] else (140, 185))
    masks = dict.fromkeys(FINDINGS, np.zeros_like(lungs))
    in_heart = draw.ellipse(x, y, (60, 170), (heart, 190)) > 0
    masks["cardiomegaly"] = in_heart & has["cardiomegaly"]
    density = np.where(in_heart, 150, density)
    # all are drawn at random, so that without a finding the rest of the image is the same
    side, level = image_rng.sign(), image_rng.between(-150, -80)
    air = lungs & (draw.ellipse(x, y, (side * 190, 60), (170, 330)) < 0)  # at the upper margin
    masks["pneumothorax"] = air & (side * x > 0) & (y < level) & has["pneumothorax"]
    density = np.where(masks["pneumothorax"], 15, density)
    side, level = image_rng.sign(), image_rng.between(180, 250)
    fluid = lungs & ~in_heart & (side * x > 0) & (y > level)
    masks["effusion"] = fluid & has["effusion"]
    density = np.where(masks["effusion"], 145, density)
    for name, disease in (("opacity", "pneumonia"), ("nodules", "tuberculosis")):
        for center, radii, height in _sample_spots(disease, image_rng):
            spot = draw.ellipse(x, y, center, radii)
            density = np.where(lungs & has[name], draw.add_bump(density, spot, height), density)
            masks[name] = masks[name] | (lungs & (spot > 200) & has[name])
    pixels = draw.expose(draw.smooth(draw.smooth(density)), image_rng, noise=9)
    boxes = {f"box/{name}": draw.bounding_box(mask) for name, mask in masks.items()}
    return PhantomImage(pixels, draw.bounding_box(np.any([*masks.values()], axis=0)), boxes)


def _chest_image(
    patient_rng: Rng, image_rng: Rng, size: int, spots: Spots, heart: int, is_enlarged: bool = False
) -> PhantomImage:
    """A chest with these spots in the lungs; ``heart`` is the half width of the heart."""
    x, y = draw.random_pose(size, image_rng, (40, 40), 8)
    density, lungs = _thorax(x, y, patient_rng)
    in_heart = draw.ellipse(x, y, (60, 170), (heart, 190)) > 0
    density = np.where(in_heart, 150, density)
    lesions = in_heart & is_enlarged
    for center, radii, height in spots:
        spot = draw.ellipse(x, y, center, radii)
        density = np.where(lungs, draw.add_bump(density, spot, height), density)
        lesions |= lungs & (spot > 200)
    pixels = draw.expose(draw.smooth(draw.smooth(density)), image_rng, noise=9)
    return PhantomImage(pixels, draw.bounding_box(lesions))


def _thorax(x: np.ndarray, y: np.ndarray, patient_rng: Rng) -> tuple[np.ndarray, np.ndarray]:
    """Density map of soft tissue, lungs and ribs, and the mask of the lungs."""
    width, height = patient_rng.between(165, 195), patient_rng.between(330, 380)
    left, right = (draw.ellipse(x, y, (side * 225, 0), (width, height)) > 0 for side in (-1, 1))
    lungs = left | right
    density = np.where(lungs, 55, 150)
    ribs = (y + x.astype(np.int64) ** 2 // 700 + patient_rng.between(0, 90)) % 110 < 30
    return np.where(ribs & (np.abs(x) > 60), density + 22, density).astype(np.int64), lungs


def _sample_spots(disease: str, rng: Rng) -> Spots:
    """Random bright spots in the lungs, as this disease has them; none if it is normal."""
    if disease == "tuberculosis":
        side = rng.sign()
        centers = [(side * rng.between(140, 300), rng.between(-280, -120)) for _ in range(4)]
        return [(center, (rng.between(40, 60),) * 2, 95) for center in centers]
    if disease == "pneumonia":
        center = (rng.sign() * rng.between(190, 260), rng.between(110, 220))
        return [(center, (rng.between(120, 160), rng.between(110, 160)), 95)]
    sides = (-1, 1, -1, 1) if disease == "covid" else ()
    centers = [(side * rng.between(290, 350), rng.between(-100, 240)) for side in sides]
    return [(center, (rng.between(60, 90), rng.between(80, 120)), 75) for center in centers]


def retina(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """A fundus; grades differ in red dots, yellow spots and, in the last grade, new vessels."""
    x, y = draw.random_pose(size, image_rng, (30, 30), 20)
    tone, radius = patient_rng.between(-20, 20), image_rng.between(440, 490)
    pale = np.zeros(x.shape, dtype=np.int64)
    pale = draw.add_bump(pale, draw.ellipse(x, y, (260 * patient_rng.sign(), 0), (80, 90)), 110)
    dark, lesions = _vessels(x, y, patient_rng), np.zeros(x.shape, dtype=bool)
    num_dots, num_spots = (image_rng.between(*n[label]) for n in (_RED_DOTS, _YELLOW_SPOTS))
    for _ in range(num_dots):
        spot = draw.ellipse(x, y, _random_point(image_rng), (image_rng.between(22, 34),) * 2)
        dark, lesions = draw.add_bump(dark, spot, 80), lesions | (spot > 0)
    for _ in range(num_spots):
        center, width = _random_point(image_rng), image_rng.between(30, 55)
        spot = draw.ellipse(x, y, center, (width, image_rng.between(30, 55)))
        pale, lesions = draw.add_bump(pale, spot, 90), lesions | (spot > 0)
    if label == 4:
        vessels = _new_vessels(x, y, image_rng)
        pale, lesions = pale + 100 * vessels, lesions | vessels
    disc = draw.ellipse(x, y, (0, 0), (radius, radius)) > 0
    pixels = _to_rgb(draw.smooth(pale), draw.smooth(dark), disc, tone, image_rng)
    count = str(num_dots + num_spots + (label == 4))
    return PhantomImage(pixels, draw.bounding_box(lesions & disc), {"lesions": count})


def _random_point(rng: Rng) -> tuple[int, int]:
    """(x, y) within the retina."""
    return rng.between(-290, 290), rng.between(-290, 290)


def _vessels(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    """Map of the darkness of four curved vessels; 0 elsewhere."""
    dark = np.zeros(x.shape, dtype=np.int64)
    for _ in range(4):
        bend = rng.sign() * rng.between(300, 900)
        curve = y - rng.between(-220, 220) - x.astype(np.int64) ** 2 // bend
        dark = np.maximum(dark, np.where(np.abs(curve) < rng.between(8, 15), 45, 0))
    return dark


def _new_vessels(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    """A mask of fine crossing lines within a small disc."""
    center, radius = _random_point(rng), rng.between(110, 150)
    u, v = draw.rotate(x - center[0], y - center[1], rng.between(0, 179))
    lines = (u % 56 < 18) | (v % 56 < 18)
    return np.asarray(lines & (draw.ellipse(u, v, (0, 0), (radius, radius)) > 0))


def _to_rgb(
    pale: np.ndarray, dark: np.ndarray, disc: np.ndarray, tone: int, rng: Rng
) -> np.ndarray:
    """uint8 (H, W, 3) of maps of brightness and darkness, with random gain; black off the disc."""
    gain = rng.between(190, 280)
    grain = rng.noise(len(disc)) * rng.between(2, 6) // 148
    base = ((170 + tone, 1, 1), (80 + tone // 2, 1, 2), (40, 0, 2))
    channels = []
    for level, dark_factor, pale_factor in base:
        channel = (level + pale * pale_factor // 2 - dark * dark_factor) * gain // 256 + grain
        channels.append(np.where(disc, channel, np.abs(grain) // 2))
    return np.asarray(np.clip(np.stack(channels, axis=-1), 0, 255), dtype=np.uint8)
