"""Statistics of every image file, and a thumbnail of each."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from pathlib import Path
from threading import Lock

import numpy as np
import pandas as pd
from rich.progress import Progress, track

from datamodules.audit.memo import AUDIT_VERSION, Memo, key_of
from datamodules.audit.thumbnails import make_thumbnails, stack_thumbnails
from datamodules.images import (
    ImageError,
    content_digest,
    decode,
    detect_format,
    file_state,
    read_file_bytes,
    split_frame_number,
)

_CHUNK = 1024
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


class ThumbnailFiles:
    """Thumbnails (side, side) by (row, view), each read from the memo's files when needed."""

    def __init__(self, files: list[Path]) -> None:
        # numpy parses a header by `ast`, which in Python 3.11 may fail in several threads at once
        self._files, self._lock = files, Lock()

    def __getitem__(self, place: tuple[int, int]) -> np.ndarray:
        chunk, row = divmod(int(place[0]), _CHUNK)
        with self._lock:
            views = np.load(self._files[chunk], mmap_mode="r")
        return np.array(views[row, place[1]])


class FileReader:
    """Reads and decodes every file once, on all cores, unless the memo has it unchanged."""

    def __init__(self, paths: list[str], memo: Memo) -> None:
        self._memo, self._pool = memo, ThreadPoolExecutor(len(os.sched_getaffinity(0)))
        states = np.array([*self._pool.map(_state, paths)])
        parts = [slice(k, k + _CHUNK) for k in range(0, len(paths), _CHUNK)]
        self._chunks = {key_of(AUDIT_VERSION, *paths[p], states[p]): paths[p] for p in parts}

    def stats(self) -> pd.DataFrame:
        """One row per file.

        Columns are ``digest``, ``format``, ``color``, ``error`` (empty for a readable file),
        ``warning`` (of a damaged one) and the ``NUMBERS``, missing if there is an error.
        """
        rows: list[dict[str, str | float]] = []
        with Progress() as bar:
            total = sum(map(len, self._chunks.values()))
            task = bar.add_task("reading every file", total=total)
            for key, paths in self._chunks.items():
                rows += self._rows(key, paths, partial(bar.advance, task))
                bar.update(task, completed=len(rows))
        return pd.DataFrame(rows)

    def thumbnails(self) -> ThumbnailFiles:
        """The thumbnails of every file; files are decoded again if the memo lacks theirs."""
        files = []
        for key, paths in track(
            self._chunks.items(), "reading thumbnails", disable=len(self._chunks) < 8
        ):
            self._memo.load(name := f"thumbnails-{key}", partial(self._thumbnails, paths))
            files.append(self._memo.file(name))
        return ThumbnailFiles(files)

    def _rows(
        self, key: str, paths: list[str], advance: Callable[[], None]
    ) -> list[dict[str, str | float]]:
        """The rows of a chunk; read again if an unreadable file can be read, or fails otherwise."""
        name, read = f"stats-{key}", partial(self._read, key, paths, advance)
        rows: list[dict[str, str | float]]
        rows = json.loads(self._memo.load(name, read, is_result=True).tobytes())
        errors = {path: row["error"] for path, row in zip(paths, rows, strict=True) if row["error"]}
        if all(_file_stats(path)[0]["error"] == error for path, error in errors.items()):
            return rows
        self._memo.save(name, text := read())  # a disk or a network did not work before
        return list(json.loads(text.tobytes()))

    def _read(self, key: str, paths: list[str], advance: Callable[[], None]) -> np.ndarray:
        """The rows of a chunk as the uint8 bytes of a JSON list; saves its thumbnails."""
        rows, views = [], []
        with _stderr_in_file() as printed:
            for row, thumbnails in self._pool.map(partial(_file_stats, printed=printed), paths):
                rows.append(row)
                views.append(thumbnails)
                advance()
        self._memo.save(f"thumbnails-{key}", stack_thumbnails(views))
        # decoded again, in another process, as it is not known which of several threads printed
        is_suspect = [row.pop("has_printed") and row["format"] == "jpeg" for row in rows]
        chosen = np.flatnonzero(is_suspect).tolist()
        step = -(-len(chosen) // len(os.sched_getaffinity(0)))
        parts = [[paths[k] for k in chosen[n : n + step]] for n in range(0, len(chosen), step or 1)]
        texts = chain.from_iterable(self._pool.map(jpeg_warnings, parts))
        warnings = dict(zip(chosen, texts, strict=True))
        rows = [row | {"warning": warnings.get(k, "")} for k, row in enumerate(rows)]
        return np.frombuffer(json.dumps(rows).encode(), np.uint8)

    def _thumbnails(self, paths: list[str]) -> np.ndarray:
        """Thumbnails (n, views, side, side) of n files, which are decoded."""
        with _stderr_in_file():
            return stack_thumbnails([views for _, views in self._pool.map(_file_stats, paths)])


def describe_images(paths: list[str]) -> pd.DataFrame:
    """One row per file: ``NUMBERS`` and ``CATEGORIES`` by label, missing if it is unreadable."""
    with tempfile.TemporaryDirectory() as folder, Memo(Path(folder)) as memo:
        stats = FileReader(paths, memo).stats()
    return stats[[*NUMBERS, *CATEGORIES]].rename(columns=NUMBERS | CATEGORIES)


def _state(path: str) -> str:
    """The ``file_state`` of a path, or the reason why there is none."""
    try:
        return file_state(split_frame_number(path)[0])
    except OSError as error:
        return str(error.strerror)


@contextmanager
def _stderr_in_file() -> Iterator[int]:
    """Collects what C libraries print to stderr in a file, and yields its descriptor.

    At the end, prints the file without the warnings on damaged JPEG files.
    """
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
    """Path and warning for each JPEG file that is damaged but can be decoded, else "".

    OpenCV fills what is missing with gray, and only prints what libjpeg found: hence a process.
    """
    command = [sys.executable, "-P", "-c", _DECODE]
    done = subprocess.run(command, input="\0".join(paths).encode(), stderr=subprocess.PIPE)
    printed = done.stderr.decode(errors="replace").split(_SEPARATOR)[1:]
    matches = (re.search(_DAMAGE, text) for text in printed)
    texts = [match[0] if match else "" for match in matches]
    return [f"{path}: {text}" if text else "" for path, text in zip(paths, texts, strict=True)]


def _file_stats(path: str, printed: int = 2) -> tuple[dict[str, str | float], np.ndarray | None]:
    """A file's row of ``stats``, without ``warning``, and its thumbnails, None if it is unreadable.

    ``has_printed`` is whether something was printed to the descriptor ``printed`` meanwhile.
    """
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
    return row | _image_statistics(image, views[-1], len(data)), views


def _image_statistics(image: np.ndarray, thumbnail: np.ndarray, num_bytes: int) -> dict[str, float]:
    """The statistics ``NUMBERS`` by column; those of brightness are of the thumbnail."""
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
