"""Small PNGs of pictures, for reports."""

from pathlib import Path

import cv2
import numpy as np

from datamodules import images


def thumbnail(path: Path, size: int = 192) -> bytes:
    """The picture as PNG, its longer side at most `size`; the file's error if it has one."""
    pixels = images.read(path)
    height, width = pixels.shape[:2]
    scale = min(1.0, size / max(height, width))
    small = (max(1, round(width * scale)), max(1, round(height * scale)))
    resized = cv2.resize(pixels, small, interpolation=cv2.INTER_AREA)
    if resized.ndim == 3:
        resized = cv2.cvtColor(resized, cv2.COLOR_RGB2BGR)
    return np.asarray(cv2.imencode(".png", resized)[1]).tobytes()
