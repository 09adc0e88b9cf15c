"""Generated fundus photographs whose grade follows from the number of lesions."""

import numpy as np

from datamodules.phantoms.primitives import (
    PhantomImage,
    Rng,
    add_bump,
    bounding_box,
    ellipse,
    random_pose,
    rotate,
    smooth,
)

GRADES = ["none", "mild", "moderate", "severe", "proliferative"]
_RED_DOTS = ((0, 0), (2, 4), (7, 11), (16, 24), (10, 20))
_YELLOW_SPOTS = ((0, 0), (0, 0), (1, 3), (4, 7), (2, 6))


def retina(label: int, patient_rng: Rng, image_rng: Rng, size: int) -> PhantomImage:
    """One eye; grades differ in red dots, yellow spots and, in the last grade, new vessels."""
    x, y = random_pose(size, image_rng, (30, 30), 20)
    tone, radius = patient_rng.between(-20, 20), image_rng.between(440, 490)
    zeros = np.zeros((size, size), dtype=np.int64)
    dark, lesions = zeros, np.zeros(zeros.shape, dtype=bool)
    pale = add_bump(zeros, ellipse(x, y, (260 * patient_rng.sign(), 0), (80, 90)), 110)
    dark = dark + _vessels(x, y, patient_rng)
    counts = image_rng.between(*_RED_DOTS[label]), image_rng.between(*_YELLOW_SPOTS[label])
    for _ in range(counts[0]):
        spot = ellipse(x, y, _random_point(image_rng), (image_rng.between(22, 34),) * 2)
        dark, lesions = add_bump(dark, spot, 80), lesions | (spot > 0)
    for _ in range(counts[1]):
        spot = ellipse(
            x, y, _random_point(image_rng), (image_rng.between(30, 55), image_rng.between(30, 55))
        )
        pale, lesions = add_bump(pale, spot, 90), lesions | (spot > 0)
    if label == 4:
        vessels = _new_vessels(x, y, image_rng)
        pale, lesions = pale + 100 * vessels, lesions | vessels
    disc = ellipse(x, y, (0, 0), (radius, radius)) > 0
    pixels = _to_rgb(smooth(pale), smooth(dark), disc, tone, image_rng)
    return PhantomImage(
        pixels, bounding_box(lesions & disc), {"lesions": str(sum(counts) + (label == 4))}
    )


def _random_point(rng: Rng) -> tuple[int, int]:
    return rng.between(-290, 290), rng.between(-290, 290)


def _vessels(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    dark = np.zeros(x.shape, dtype=np.int64)
    for _ in range(4):
        bend = rng.sign() * rng.between(300, 900)
        curve = y - rng.between(-220, 220) - x.astype(np.int64) ** 2 // bend
        dark = np.maximum(dark, np.where(np.abs(curve) < rng.between(8, 15), 45, 0))
    return dark


def _new_vessels(x: np.ndarray, y: np.ndarray, rng: Rng) -> np.ndarray:
    """A mask of fine crossing lines within a small disc."""
    center, radius = _random_point(rng), rng.between(110, 150)
    u, v = rotate(x - center[0], y - center[1], rng.between(0, 179))
    lines = (u % 56 < 18) | (v % 56 < 18)
    return np.asarray(lines & (ellipse(u, v, (0, 0), (radius, radius)) > 0))


def _to_rgb(
    pale: np.ndarray, dark: np.ndarray, disc: np.ndarray, tone: int, rng: Rng
) -> np.ndarray:
    """uint8 (H, W, 3) of bright and dark structures under random gain and noise."""
    gain = rng.between(190, 280)
    grain = rng.noise(len(disc)) * rng.between(2, 6) // 148
    base = ((170 + tone, 1, 1), (80 + tone // 2, 1, 2), (40, 0, 2))
    channels = []
    for level, dark_factor, pale_factor in base:
        channel = (level + pale * pale_factor // 2 - dark * dark_factor) * gain // 256 + grain
        channels.append(np.where(disc, channel, np.abs(grain) // 2))
    return np.asarray(np.clip(np.stack(channels, axis=-1), 0, 255), dtype=np.uint8)
