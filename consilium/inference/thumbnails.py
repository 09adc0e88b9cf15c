"""Pictures as small PNGs."""

from pathlib import Path

import cv2
import numpy as np

from datamodules import images

TURNS = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}


def thumbnail(path: Path, size: int = 192) -> bytes:
    """The picture as PNG, its longer side at most `size`; the file's error if it has one."""
    return png(smaller(images.read(path), size))


def smaller(picture: np.ndarray, side: int) -> np.ndarray:
    """The picture, its longer side at most `side`."""
    height, width = picture.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return picture
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA))


def png(pixels: np.ndarray) -> bytes:
    """Gray, RGB or RGBA pixels as PNG."""
    turned = cv2.cvtColor(pixels, TURNS[pixels.shape[2]]) if pixels.ndim == 3 else pixels
    return np.asarray(cv2.imencode(".png", turned)[1]).tobytes()
