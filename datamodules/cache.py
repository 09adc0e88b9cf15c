"""Caches in memory-mapped files: preprocessed pixels of datasets, and features of networks.

The key of a store of pixels is a hash of the bytes of all files, of the settings that the pixels
depend on and of the code that computes them, so a changed file, setting or version uses another.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain
from pathlib import Path
from typing import Any
from uuid import uuid4

import cv2
import numpy as np
from rich.progress import track

from datamodules.images import (
    ImageError,
    decode,
    file_state,
    read_file_bytes,
    split_frame_number,
)
from datamodules.preprocess import Preprocess

HASHED_FILES = ("images.py", "dicom.py", "preprocess.py")  # the code that computes pixels
_CHUNK = 256  # files in memory at the same time, as the disk may be slow
PIXELS, INDEX, MEMO = "pixels.u8", "index.json", "hashes.json"
STORE_GLOB, UNFINISHED = "[0-9a-f]" * 24, ".building-"  # names of folders
FEATURES = "features-"  # and a hash: the folder of the features of a network
FEATURE_FILE = "[0-9a-f]" * 32 + ".*"
INDEX_KEYS = {"bytes", "offsets", "failures", "settings"}


def code_version() -> str:
    """A hash of the code that computes pixels and of OpenCV's version."""
    code = b"".join(Path(__file__).with_name(name).read_bytes() for name in HASHED_FILES)
    return hashlib.sha256(code + cv2.__version__.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class PixelStore:
    """Preprocessed pixels of a dataset in a memory-mapped file, which processes share."""

    folder: Path  # of its two files
    side: int  # of its square images
    entries: dict[str, tuple[int, int]]  # offset and number of channels (0 for gray) of each path
    failures: dict[str, str]  # the reason for each path that cannot be read

    def pixels(self, path: str) -> np.ndarray:
        """Pixels of a file, uint8 (side, side[, 3]), read-only; ImageError if it is unreadable."""
        if path in self.failures:
            raise ImageError(self.failures[path])
        offset, channels = self.entries[path]
        flat = self._map[offset : offset + self.side**2 * max(1, channels)]
        return flat.reshape(self.side, self.side, *[channels] * (channels > 0))

    def channel_statistics(self, paths: list[str]) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel, for pixels from 0 to 1."""
        sums = np.zeros((2, 3))
        for path in paths:
            pixels = self.pixels(path).reshape(self.side**2, -1) / 255.0
            sums += np.stack([pixels.mean(axis=0), (pixels**2).mean(axis=0)])
        mean, mean_square = sums / len(paths)
        return mean.tolist(), np.sqrt(mean_square - mean**2).tolist()

    @cached_property
    def _map(self) -> np.ndarray:
        """The memory-mapped pixels of all files, one after another."""
        if not (self.folder / PIXELS).stat().st_size:
            return np.empty(0, dtype=np.uint8)
        return np.asarray(np.memmap(self.folder / PIXELS, dtype=np.uint8, mode="r"))

    def __getstate__(self) -> dict[str, object]:
        """Without the memory map: a worker opens its own instead of receiving the pixels."""
        return {name: value for name, value in self.__dict__.items() if name != "_map"}


def open_store(paths: list[str], preprocess: Preprocess, root: Path) -> PixelStore:
    """The store of these files with these settings; builds it if it is missing or incomplete."""
    root.mkdir(parents=True, exist_ok=True)
    hashes = file_hashes(paths, root)
    parts = [code_version(), json.dumps(preprocess.pixel_settings(), sort_keys=True)]
    key = "\n".join([*parts, *sorted(set(hashes.values()))])
    folder = root / hashlib.sha256(key.encode()).hexdigest()[:24]
    read_store = partial(_read_store, folder, preprocess.side, hashes)
    if (store := read_store()) is not None:
        return store
    temporary = root / f"{UNFINISHED}{uuid4().hex[:8]}"
    temporary.mkdir()  # not by tempfile: colleagues may read it if the umask allows it
    try:
        _build_store(temporary, hashes, preprocess)
        if folder.exists() and read_store() is None:
            shutil.rmtree(folder, ignore_errors=True)
        temporary.replace(folder)
    except OSError:
        if read_store() is None:  # else another process was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    if (store := read_store()) is None:
        raise OSError(f"{folder}: the store is incomplete after it was built")
    return store


class FeatureStore:
    """Features by key: float16 arrays in files of a folder, which are memory-mapped.

    Without a folder they are in memory only. Several processes may add the same features; a file
    that was not completed is not read.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self._features: dict[str, np.ndarray] = {}
        for file in folder.glob("*.npy") if folder else ():
            with suppress(OSError, ValueError):
                self._read_file(file, json.loads(file.with_suffix(".json").read_text()))

    def __len__(self) -> int:
        return len(self._features)

    def missing(self, keys: Sequence[str]) -> list[int]:
        """The positions of keys without features; of equal keys the first."""
        first = {key: k for k, key in reversed(list(enumerate(keys))) if key not in self._features}
        return sorted(first.values())

    def add(self, keys: Sequence[str], features: np.ndarray) -> None:
        """Adds the features (n, D) of n keys."""
        features = features.astype(np.float16)
        if self.folder is None:
            self._features |= dict(zip(keys, features, strict=True))
            return
        file = self.folder / f"{uuid4().hex}.npy"
        self.folder.mkdir(parents=True, exist_ok=True)
        with file.open("xb") as stream:
            np.save(stream, features)
        file.with_suffix(".json").write_text(json.dumps(list(keys)))  # last: it completes the file
        self._read_file(file, keys)

    def read(self, keys: Sequence[str]) -> np.ndarray:
        """The features (n, D) of n keys, in single precision."""
        return np.stack([self._features[key] for key in keys]).astype(np.float32)

    def _read_file(self, file: Path, keys: Sequence[str]) -> None:
        """Maps a file of features (n, D) into memory as those of n keys."""
        self._features |= dict(zip(keys, np.load(file, mmap_mode="r"), strict=True))


def list_stores(root: Path) -> list[tuple[str, int, int]]:
    """(name, number of images, bytes) of every store in ``root``."""
    indices = {folder: _read_index(folder) for folder in sorted(root.glob(STORE_GLOB))}
    stores = [(f.name, len(i["offsets"]), i["bytes"]) for f, i in indices.items() if i]
    for folder in sorted(root.glob(FEATURES + STORE_GLOB)):
        size = sum(file.stat().st_size for file in folder.glob("*.npy"))
        stores.append((folder.name, len(FeatureStore(folder)), size))
    return stores


def clear_stores(root: Path) -> tuple[int, list[Path]]:
    """Removes the files of every store in ``root``, and of unfinished builds.

    Returns the number of stores, and the folders that remain as they contain other files too.
    """
    stores = [folder for folder in root.glob(STORE_GLOB) if _read_index(folder)]
    remaining = []
    features = list(root.glob(FEATURES + STORE_GLOB))
    for folder in [*stores, *features, *root.glob(f"{UNFINISHED}*")]:
        for name in (PIXELS, INDEX):
            (folder / name).unlink(missing_ok=True)
        for file in folder.glob(FEATURE_FILE) if folder in features else ():
            file.unlink()
        try:
            folder.rmdir()
        except OSError:
            remaining.append(folder)
    if _read_memo(root / MEMO):
        (root / MEMO).unlink()
    return len(stores) + len(features), remaining


def file_hashes(paths: list[str], root: Path) -> dict[str, str]:
    """SHA-256 by path, with "#1" for frame 1; of unchanged files from ``root/hashes.json``."""
    memo_path = root / MEMO
    memo = _read_memo(memo_path)
    frames = {path: split_frame_number(path) for path in paths}
    files = list(dict.fromkeys(str(file) for file, _ in frames.values()))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        entries = dict(zip(files, pool.map(partial(_hash_file, memo=memo), files), strict=True))
    if any(memo.get(file) != entry for file, entry in entries.items()):
        temporary = root / f".{memo_path.name}-{os.getpid()}"
        temporary.write_text(json.dumps(memo | entries))
        temporary.replace(memo_path)
    return {
        path: entries[str(file)][1] + ("" if frame is None else f"#{frame}")
        for path, (file, frame) in frames.items()
    }


def _hash_file(path: str, memo: dict[str, list[str]]) -> list[str]:
    """State and SHA-256 of a file, or "" and the reason why it cannot be read."""
    try:
        state = file_state(path)
        if path in memo and memo[path][0] == state:
            return memo[path]
        with Path(path).open("rb") as file:
            return [state, hashlib.file_digest(file, "sha256").hexdigest()]
    except OSError as error:
        return ["", f"{path}: {error.strerror}"]


def _read_store(folder: Path, side: int, hashes: dict[str, str]) -> PixelStore | None:
    """The store in this folder, or None if there is none or its files are truncated."""
    index = _read_index(folder)
    if index is None or (folder / PIXELS).stat().st_size != index["bytes"]:
        return None
    offsets, failed = index["offsets"], index["failures"]
    entries = {p: (offsets[h][0], offsets[h][1]) for p, h in hashes.items() if h in offsets}
    failures = {p: f"{p}: {failed[h]}" for p, h in hashes.items() if h in failed}
    return PixelStore(folder, side, entries, failures)


def _read_index(folder: Path) -> dict[str, Any] | None:
    """The index of a store, or None if the folder is not a store of this program."""
    try:
        index = json.loads((folder / INDEX).read_text())
        (folder / PIXELS).stat()
    except (OSError, ValueError):
        return None
    return index if isinstance(index, dict) and index.keys() == INDEX_KEYS else None


def _read_memo(file: Path) -> dict[str, list[str]]:
    """The state and hash of each file in a memo; empty if it is missing or damaged."""
    with suppress(OSError, ValueError):
        memo = json.loads(file.read_text())
        if isinstance(memo, dict) and all(
            isinstance(v, list) and len(v) == 2 for v in memo.values()
        ):
            return memo
    return {}


def _build_store(folder: Path, hashes: dict[str, str], preprocess: Preprocess) -> None:
    """Writes pixels and index of all files; threads suffice, as OpenCV releases the GIL."""
    first_path = {digest: path for path, digest in reversed(hashes.items())}
    paths, work = [*first_path.values()], partial(_preprocess_file, preprocess=preprocess)
    chunks = (paths[k : k + _CHUNK] for k in range(0, len(paths), _CHUNK))
    offsets: dict[str, tuple[int, int]] = {}
    failures: dict[str, str] = {}
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    with pool, (folder / PIXELS).open("wb") as file:
        results = chain.from_iterable(pool.map(work, chunk) for chunk in chunks)
        pairs = zip(first_path, results, strict=True)
        for digest, result in track(pairs, "preprocessing images", total=len(paths)):
            if isinstance(result, str):
                failures[digest] = result
            else:
                offsets[digest] = (file.tell(), result.shape[2] if result.ndim == 3 else 0)
                file.write(np.ascontiguousarray(result).data)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    settings = preprocess.pixel_settings()
    index = {"bytes": size, "offsets": offsets, "failures": failures, "settings": settings}
    (folder / INDEX).write_text(json.dumps(index))


def _preprocess_file(path: str, preprocess: Preprocess) -> np.ndarray | str:
    """The pixels of a file, or the reason why it cannot be read."""
    try:
        return preprocess.to_pixels(decode(read_file_bytes(path), path))
    except ImageError as error:
        return str(error).removeprefix(f"{path}: ")
