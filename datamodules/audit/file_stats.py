"""Looks at every file once: its bytes, its size, its light, and a small picture of it."""

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.progress import track

from datamodules.audit.near_duplicates import LOOK, look
from datamodules.headers import format_of
from datamodules.images import ImageError, content, decoded, digest_of, without_frame

_AT_ONCE = 512
NUMBERS = (
    "bytes",
    "bytes_per_pixel",
    "width",
    "height",
    "aspect",
    "mean",
    "std",
    "black_share",
    "white_share",
    "corner_mean",
    "sharpness",
)


@dataclass(frozen=True, eq=False)
class Survey:
    """What was seen of each file, in the order of the paths.

    Args:
        table: Columns ``digest``, ``format``, ``color``, ``error`` (empty when the file can be
            read) and the ``NUMBERS``, which are missing where there is an error.
        looks: (n, 2, LOOK, LOOK) small pictures, kept on disk.
    """

    table: pd.DataFrame
    looks: np.ndarray


def survey(paths: list[str]) -> Survey:
    """Reads and decodes every file, on all cores; a file that cannot be read is an entry too."""
    with tempfile.TemporaryFile() as file:  # lives on as long as it is mapped
        shape = (max(1, len(paths)), 2, LOOK, LOOK)
        looks = np.memmap(file, dtype=np.uint8, mode="w+", shape=shape)
    rows: list[dict[str, str | float]] = []
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for start in track(range(0, len(paths), _AT_ONCE), description="looking at every file"):
            for row, small in pool.map(_one, paths[start : start + _AT_ONCE]):
                if small is not None:
                    looks[len(rows), : len(small)] = small
                rows.append(row)
    return Survey(pd.DataFrame(rows), looks[: len(paths)])


def _one(path: str) -> tuple[dict[str, str | float], np.ndarray | None]:
    row: dict[str, str | float] = {"digest": "", "format": "", "color": "", "error": ""}
    try:
        data = content(path)
        row["digest"] = digest_of(data, without_frame(path)[1])
        row["format"] = format_of(data[:132].tobytes()) or ""
        image = decoded(data, path)
    except ImageError as error:
        return row | dict.fromkeys(NUMBERS, np.nan) | {"error": str(error)}, None
    row["color"] = "gray" if image.ndim == 2 else "color"
    small = look(image)
    return row | _numbers(image, small[-1], len(data)), small


def _numbers(image: np.ndarray, small: np.ndarray, size: int) -> dict[str, float]:
    """Trivial numbers; a class that one of them gives away needs no radiologist."""
    height, width = image.shape[:2]
    light = small.astype(np.float32)
    corners = [light[y, x].mean() for y in (slice(0, 9), slice(-9, None)) for x in (0, -1)]
    return {
        "bytes": float(size),
        "bytes_per_pixel": size / (height * width),
        "width": float(width),
        "height": float(height),
        "aspect": width / height,
        "mean": float(light.mean()),
        "std": float(light.std()),
        "black_share": float((small < 8).mean()),
        "white_share": float((small > 247).mean()),
        "corner_mean": float(np.mean(corners)),
        "sharpness": float(np.abs(np.diff(light, axis=1)).mean()),
    }
