"""Reads any picture file into one 8-bit gray or RGB array, or says which file cannot be read."""

import hashlib
import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from datamodules import dicom
from datamodules.headers import FORMATS, Header, format_of, header

MAX_BYTES = 1 << 29
MAX_PIXELS = 100_000_000
_DEPTHS = (8, 10, 12, 14, 16)  # bits that detectors use
_FLAGS = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH  # applies the EXIF turn and drops alpha


class ImageError(ValueError):
    """A file that is not a picture that can be read; the message begins with the file's path."""


def read(path: str | Path) -> np.ndarray:
    """Pixels of a file as uint8: (H, W) when it is gray, else (H, W, 3) in the order RGB.

    A frame of a file with several is named by its number: ``scan.dcm#3``. Deeper pixels are
    brought to 8 bits from the smallest of 8, 10, 12, 14, 16 bits that holds their largest value.
    """
    return decoded(content(path), path)


def unreadable(paths: list[str]) -> dict[str, str]:
    """For each file that cannot be decoded the reason; all are tried, on all cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        reasons = track(pool.map(_reason, paths), "reading every picture", total=len(paths))
        return {path: why for path, why in zip(paths, reasons, strict=True) if why is not None}


def _reason(path: str) -> str | None:
    try:
        read(path)
    except ImageError as error:
        return str(error)
    return None


def content(path: str | Path) -> np.ndarray:
    """The bytes of a file, which must not be empty nor above ``MAX_BYTES``."""
    file = without_frame(path)[0]
    try:
        size = file.stat().st_size
        if size > MAX_BYTES:
            raise ImageError(f"{file}: {size} bytes; allowed are {MAX_BYTES}")
        data = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise ImageError(f"{file}: {error.strerror or 'cannot be read'}") from error
    if not data.size:
        raise ImageError(f"{file}: the file is empty")
    return data


def decoded(data: np.ndarray, path: str | Path) -> np.ndarray:
    """The pixels that these bytes hold; ``path`` gives the frame and the name for messages."""
    file, frame = without_frame(path)
    try:
        return pixels(data, frame)
    except ValueError as error:
        raise ImageError(f"{file}: {error}") from error


def without_frame(path: str | Path) -> tuple[Path, int | None]:
    """The file that a path leads to, and the frame that it names after ``#``, if any."""
    found = re.fullmatch(r"(.+)#(\d+)", str(path))
    if found and not Path(path).exists():
        return Path(found.group(1)), int(found.group(2))
    return Path(path), None


def digest_of(data: np.ndarray, frame: int | None) -> str:
    """What is equal for copies: sha256 of a file's bytes, and which of its frames is meant."""
    whole = hashlib.sha256(data.data).hexdigest()
    return f"{whole}#{frame}" if frame else whole


def pixels(data: np.ndarray, frame: int | None = None, max_pixels: int | None = None) -> np.ndarray:
    """The pixels that bytes without a name hold, at most ``max_pixels`` (``MAX_PIXELS``).

    Raises:
        ValueError: With the reason, without any file's name.
    """
    most = MAX_PIXELS if max_pixels is None else max_pixels
    kind = format_of(data[:132].tobytes())
    if kind is None:
        start = data[:12].tobytes()
        raise ValueError(f"begins with {start!r}, which is none of {', '.join(FORMATS)}")
    if kind == "dicom":
        return dicom.pixels(data.tobytes(), frame, most)
    found = header(kind, data)
    _check(found, frame, most)
    try:
        return _eight_bits(_decode(data, found, frame))
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot decode it ({error.err})") from error


def _check(found: Header, frame: int | None, max_pixels: int) -> None:
    if found.width * found.height > max_pixels:
        raise ValueError(f"{found.width} x {found.height} pixels; allowed are {max_pixels}")
    if frame is None and found.pages > 1:
        raise ValueError(f"{found.pages} frames; name one by its number, as in 'file.tif#0'")
    if frame is not None and frame >= found.pages:
        raise ValueError(f"frame is {frame}; the file has the frames 0 to {found.pages - 1}")


def _decode(data: np.ndarray, found: Header, frame: int | None) -> np.ndarray:
    if frame:
        _, pages = cv2.imdecodemulti(data, _FLAGS, range=(frame, frame + 1))
        image = pages[0] if pages else None
    else:
        image = cv2.imdecode(data, _FLAGS)
    if image is None:
        raise ValueError("damaged or cut short: OpenCV cannot decode it")
    if image.ndim == 3 and found.gray:
        return np.ascontiguousarray(image[..., 0])
    return np.asarray(image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _eight_bits(image: np.ndarray) -> np.ndarray:
    if image.dtype == np.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    if image.dtype.kind == "f" and 0.0 <= low <= high <= 1.0:
        return np.asarray(np.rint(image * 255.0), dtype=np.uint8)
    if image.dtype != np.uint16:
        raise ValueError(f"{image.dtype} pixels from {low} to {high}; floats must be from 0 to 1")
    top = next(2**bits - 1 for bits in _DEPTHS if high < 2**bits)
    return np.asarray(np.rint(image * (255.0 / top)), dtype=np.uint8)
