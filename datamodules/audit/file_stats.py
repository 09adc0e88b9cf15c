"""Statistics of every image file, and a thumbnail of each."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np
import pandas as pd
from rich.progress import track

from datamodules.audit.near_duplicates import THUMBNAIL_SIZE, make_thumbnails
from datamodules.images import ImageError, content_digest, decode, detect_format, read_file_bytes

_CHUNK = 512
_SEPARATOR = "\n# next file\n"
_DAMAGE = "(Corrupt JPEG data|Premature end of JPEG).*"  # as printed by libjpeg
_DECODE = f"""
import os, sys, cv2
for path in sys.stdin.buffer.read().decode().split(chr(0)):
    os.write(2, {_SEPARATOR.encode()!r})
    cv2.imread(path, cv2.IMREAD_REDUCED_GRAYSCALE_8)
"""
NUMBERS = {  # column -> label in reports
    "bytes": "file size",
    "bytes_per_pixel": "file size per pixel",
    "width": "image width",
    "height": "image height",
    "aspect": "aspect ratio",
    "mean": "mean brightness",
    "std": "contrast (standard deviation)",
    "black_ratio": "share of black pixels",
    "white_ratio": "share of white pixels",
    "corner_mean": "brightness of the corners",
    "sharpness": "sharpness",
}
CATEGORIES = {"format": "file format", "color": "color or grayscale"}


def compute_file_stats(paths: list[str]) -> tuple[pd.DataFrame, np.ndarray]:
    """Reads and decodes every file, on all cores; returns a table and thumbnails by file.

    Columns are ``digest``, ``format``, ``color``, ``error`` (empty for a readable file),
    ``warning`` (of a damaged one) and the ``NUMBERS``, missing if there is an error. The
    thumbnails (n, 2, side, side) are on disk.
    """
    with tempfile.TemporaryFile() as file:  # exists as long as it is mapped
        shape = (max(1, len(paths)), 2, THUMBNAIL_SIZE, THUMBNAIL_SIZE)
        thumbnails = np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
    rows: list[dict[str, str | float]] = []
    with _stderr_in_file() as printed, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        read_file = partial(_file_stats, printed=printed)
        for start in track(range(0, len(paths), _CHUNK), description="reading every file"):
            for row, views in pool.map(read_file, paths[start : start + _CHUNK]):
                if views is not None:
                    thumbnails[len(rows), : len(views)] = views
                rows.append(row)
        stats = pd.DataFrame(rows)
        # decoded again, one after another, as it is not known which of several threads printed
        is_suspect = (stats["format"] == "jpeg") & stats.pop("has_printed")
        jpegs = [path for path, chosen in zip(paths, is_suspect, strict=True) if chosen]
        chunks = [jpegs[k : k + _CHUNK] for k in range(0, len(jpegs), _CHUNK)]
        warnings = [text for texts in pool.map(jpeg_warnings, chunks) for text in texts]
    stats["warning"] = ""
    stats.loc[is_suspect, "warning"] = warnings
    return stats, thumbnails[: len(paths)]


@contextmanager
def _stderr_in_file() -> Iterator[int]:
    """A file that gets what C libraries print; at the end it is printed, but for JPEG damages."""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield file.fileno()
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            file.seek(0)
            os.write(2, re.sub(_DAMAGE.encode() + b"\n?", b"", file.read()))


def jpeg_warnings(paths: list[str]) -> list[str]:
    """What is damaged in each JPEG file that can be decoded, "" if nothing is.

    OpenCV fills what is missing with gray, and only prints what libjpeg found: hence a process.
    """
    command = [sys.executable, "-P", "-c", _DECODE]
    done = subprocess.run(command, input="\0".join(paths).encode(), stderr=subprocess.PIPE)
    printed = done.stderr.decode(errors="replace").split(_SEPARATOR)[1:]
    matches = (re.search(_DAMAGE, text) for text in printed)
    texts = [match[0] if match else "" for match in matches]
    return [f"{path}: {text}" if text else "" for path, text in zip(paths, texts, strict=True)]


def _file_stats(path: str, printed: int) -> tuple[dict[str, str | float], np.ndarray | None]:
    row: dict[str, str | float] = {"digest": "", "format": "", "color": "", "error": ""}
    row["has_printed"], size = False, os.fstat(printed).st_size
    try:
        data = read_file_bytes(path)
        row["digest"] = content_digest(data, path)
        row["format"] = detect_format(data[:132].tobytes()) or ""
        image = decode(data, path)
    except ImageError as error:
        return row | dict.fromkeys(NUMBERS, np.nan) | {"error": str(error)}, None
    row["has_printed"] = os.fstat(printed).st_size > size
    row["color"] = "gray" if image.ndim == 2 else "color"
    views = make_thumbnails(image)
    return row | _numbers(image, views[-1], len(data)), views


def _numbers(image: np.ndarray, thumbnail: np.ndarray, num_bytes: int) -> dict[str, float]:
    """The ``NUMBERS`` of an image; none of them should predict its class."""
    height, width = image.shape[:2]
    brightness = thumbnail.astype(np.float32)
    corners = [brightness[y, x].mean() for y in (slice(0, 9), slice(-9, None)) for x in (0, -1)]
    return {
        "bytes": float(num_bytes), "bytes_per_pixel": num_bytes / (height * width),
        "width": float(width), "height": float(height), "aspect": width / height,
        "mean": float(brightness.mean()), "std": float(brightness.std()),
        "black_ratio": float((thumbnail < 8).mean()),
        "white_ratio": float((thumbnail > 247).mean()),
        "corner_mean": float(np.mean(corners)),
        "sharpness": float(np.abs(np.diff(brightness, axis=1)).mean()),
    }  # fmt: skip
