"""Reads any picture file into one 8-bit gray or RGB array, or says which file cannot be read."""

from pathlib import Path

import cv2
import numpy as np


class ImageError(ValueError):
    """A file that is not a picture that can be read; the message begins with the file's path."""


def read(path: str | Path) -> np.ndarray:
    """Pixels of a file as uint8: (H, W) when it is gray, else (H, W, 3) in the order RGB."""
    data = _content(Path(path))
    image = _decode(data, Path(path))
    if image.ndim == 2:
        return image
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _content(path: Path) -> np.ndarray:
    try:
        data = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise ImageError(f"{path}: {error.strerror or 'cannot be read'}") from error
    if not data.size:
        raise ImageError(f"{path}: the file is empty")
    return data


def _decode(data: np.ndarray, path: Path) -> np.ndarray:
    try:
        image = cv2.imdecode(data, cv2.IMREAD_ANYCOLOR)
    except cv2.error as error:
        raise ImageError(f"{path}: OpenCV cannot decode it ({error.err})") from error
    if image is None:
        raise ImageError(f"{path}: not a picture that can be decoded")
    return np.asarray(image)
