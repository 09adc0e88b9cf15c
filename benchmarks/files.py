"""Reads damaged image files: each is either decoded or raises an error that names the file.

Run: python -m benchmarks.files [NUM_FILES]
Exits with 1 if reading a file has any other outcome.
"""

import argparse
import io
import sys
import tempfile
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from benchmarks.resources import Stopwatch
from datamodules.images import ImageError, read_image

ALLOWED = {"decoded", "error that names the file"}


def main() -> int:
    """Prints the number of files per outcome, and the slowest reading."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", nargs="?", type=int, default=1000, help="files (1000)")
    count = parser.parse_args().count
    rng, intact = np.random.default_rng(0), intact_files()
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = Path(folder) / f"{number}.png"
            path.write_bytes(damage(intact[number % len(intact)], rng))
            stopwatch = Stopwatch()
            outcomes[reading_outcome(path)] += 1
            slowest = max(slowest, stopwatch.wall)
    print(f"{count} files: {dict(outcomes)}; slowest {slowest:.2f} s")
    return int(not set(outcomes) <= ALLOWED)


def intact_files() -> list[bytes]:
    """A color and a gray image in five formats each."""
    noise = np.random.default_rng(1).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    color = cv2.GaussianBlur(noise, (0, 0), 4)
    files = []
    for image in (color, np.ascontiguousarray(color[..., 0])):
        for file_format in ("PNG", "JPEG", "TIFF", "BMP", "WEBP"):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, file_format)
            files.append(buffer.getvalue())
    return files


def damage(data: bytes, rng: np.random.Generator) -> bytes:
    """The file as HTML, as zeros, truncated, with zeros in its middle, or with flipped bits."""
    kind = rng.integers(10)
    if kind == 0:
        return b"<html><body>not found</body></html>"
    if kind == 1:
        return bytes(int(rng.integers(0, 2000)))
    if kind < 5:
        return data[: rng.integers(len(data))]
    damaged = bytearray(data)
    if kind == 5:
        start = int(rng.integers(len(data)))
        damaged[start : start + 200] = bytes(len(damaged[start : start + 200]))
    for _ in range(int(rng.integers(1, 9))):
        damaged[rng.integers(len(damaged))] ^= 1 << rng.integers(8)
    return bytes(damaged)


def reading_outcome(path: Path) -> str:
    """What happens when the file is read."""
    try:
        image = read_image(path)
    except ImageError as error:
        names_file = str(error).startswith(str(path))
        return "error that names the file" if names_file else "error without the file's name"
    is_image = image.dtype == np.uint8 and image.shape[2:] in ((), (3,))
    return "decoded" if is_image else "array that is no image"


if __name__ == "__main__":
    sys.exit(main())
