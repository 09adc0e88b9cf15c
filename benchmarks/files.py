"""Reads damaged files: every one must end in a picture or in an error that names the file.

python benchmarks/files.py 1000
"""

import io
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datamodules.images import ImageError, read_image


def main() -> int:
    """Prints how many of each end there were, and the slowest reading."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    dice, whole = np.random.default_rng(0), whole_files()
    ends: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            path = Path(folder) / f"{number}.png"
            path.write_bytes(mutated(whole[number % len(whole)], dice))
            start = time.perf_counter()
            ends[end(path)] += 1
            slowest = max(slowest, time.perf_counter() - start)
    print(f"{count} files: {dict(ends)}; slowest {slowest:.2f} s")
    return int(set(ends) != {"picture", "error with its name"})


def whole_files() -> list[bytes]:
    """Gray and color pictures in five formats."""
    noise = np.random.default_rng(1).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    color = cv2.GaussianBlur(noise, (0, 0), 4)
    files = []
    for array in (color, np.ascontiguousarray(color[..., 0])):
        for kind in ("PNG", "JPEG", "TIFF", "BMP", "WEBP"):
            out = io.BytesIO()
            Image.fromarray(array).save(out, kind)
            files.append(out.getvalue())
    return files


def mutated(data: bytes, dice: np.random.Generator) -> bytes:
    """Flipped bits, a cut, zeros in the middle, a page of HTML, or nothing at all."""
    kind = dice.integers(10)
    if kind == 0:
        return b"<html><body>not found</body></html>"
    if kind == 1:
        return bytes(int(dice.integers(0, 2000)))
    if kind < 5:
        return data[: dice.integers(len(data))]
    changed = bytearray(data)
    if kind == 5:
        at = int(dice.integers(len(data)))
        changed[at : at + 200] = bytes(len(changed[at : at + 200]))
    for _ in range(int(dice.integers(1, 9))):
        changed[dice.integers(len(changed))] ^= 1 << dice.integers(8)
    return bytes(changed)


def end(path: Path) -> str:
    """What reading the file comes to."""
    try:
        image = read_image(path)
    except ImageError as error:
        return "error with its name" if str(error).startswith(str(path)) else "error without name"
    fits = image.dtype == np.uint8 and image.shape[2:] in ((), (3,))
    return "picture" if fits else "something else"


if __name__ == "__main__":
    sys.exit(main())
