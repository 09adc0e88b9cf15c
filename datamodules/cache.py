"""Keeps decoded and prepared pixels in one memory-mapped store; a stale entry cannot be found.

The key of a store is a hash of the bytes of all its files, of the settings that decide the pixels
and of the code that makes them, so that whatever changes leads to another store.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np
from rich.progress import track

from datamodules.images import ImageError, content, decoded, without_frame
from datamodules.preprocess import Preprocess

SOURCES = ("images.py", "headers.py", "dicom.py", "geometry.py", "preprocess.py")
_AT_ONCE = 256
PIXELS, INDEX = "pixels.u8", "index.json"


def code_version() -> str:
    """Changes whenever the code that makes pixels does, or the library below it."""
    code = b"".join(Path(__file__).with_name(name).read_bytes() for name in SOURCES)
    return hashlib.sha256(code + cv2.__version__.encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Store:
    """A finished store; workers and processes share its pages.

    Args:
        folder: Where its two files lie.
        side: Side of its square pictures.
        entries: For each path its offset and its number of channels (0 for gray).
        failures: For each path that cannot be read the reason.
    """

    folder: Path
    side: int
    entries: dict[str, tuple[int, int]]
    failures: dict[str, str]

    def pixels(self, path: str) -> np.ndarray:
        """The pixels of a file, read-only; ImageError when it could not be read."""
        if path in self.failures:
            raise ImageError(self.failures[path])
        offset, channels = self.entries[path]
        shape = (self.side, self.side, channels) if channels else (self.side, self.side)
        part = self._map[offset : offset + int(np.prod(shape))]
        return part.reshape(shape)

    def statistics(self, paths: list[str]) -> tuple[list[float], list[float]]:
        """Mean and standard deviation of each channel from 0 to 1; give the training files."""
        total, squares, count = np.zeros(3), np.zeros(3), 0
        for path in paths:
            pixels = self.pixels(path).reshape(self.side**2, -1) / 255.0
            total += pixels.mean(axis=0)
            squares += (pixels**2).mean(axis=0)
            count += 1
        mean = total / count
        return mean.tolist(), np.sqrt(squares / count - mean**2).tolist()

    @cached_property
    def _map(self) -> np.ndarray:
        if not (self.folder / PIXELS).stat().st_size:
            return np.empty(0, dtype=np.uint8)
        return np.asarray(np.memmap(self.folder / PIXELS, dtype=np.uint8, mode="r"))

    def __getstate__(self) -> dict[str, object]:
        """Without the map: a worker opens it anew instead of being sent the pixels."""
        return {name: value for name, value in self.__dict__.items() if name != "_map"}


def opened(paths: list[str], preprocess: Preprocess, root: Path) -> Store:
    """The store of these files under these settings, built now unless it is there and whole."""
    root.mkdir(parents=True, exist_ok=True)
    hashes = file_hashes(paths, root)
    folder = root / _key(hashes, preprocess)
    store = _read(folder, preprocess.side, hashes)
    if store is not None:
        return store
    making = Path(tempfile.mkdtemp(prefix=".making-", dir=root))
    try:
        _build(making, hashes, preprocess)
        _take_place(making, folder, preprocess.side, hashes)
    finally:
        shutil.rmtree(making, ignore_errors=True)
    built = _read(folder, preprocess.side, hashes)
    if built is None:
        raise OSError(f"{folder}: the store was not whole after it was built")
    return built


def stores(root: Path) -> list[tuple[str, int, int]]:
    """(name, pictures, bytes) of every store below ``root``."""
    found = sorted(path.parent for path in root.glob(f"*/{INDEX}"))
    return [(f.name, len(_index(f)["offsets"]), (f / PIXELS).stat().st_size) for f in found]


def clear(root: Path) -> int:
    """Removes every store below ``root`` and what unfinished builds left; gives their number."""
    folders = [path for path in root.glob("*") if (path / INDEX).exists()]
    for folder in [*folders, *root.glob(".making-*")]:
        shutil.rmtree(folder)
    (root / "hashes.json").unlink(missing_ok=True)
    return len(folders)


def file_hashes(paths: list[str], root: Path) -> dict[str, str]:
    """sha256 of each file's bytes, and the frame that its path names.

    A file whose size, times and inode stayed is not read again.
    """
    memo_path = root / "hashes.json"
    memo = json.loads(memo_path.read_text()) if memo_path.is_file() else {}
    places = {path: without_frame(path) for path in paths}
    files = list(dict.fromkeys(str(file) for file, _ in places.values()))
    with ThreadPoolExecutor(_threads()) as pool:
        found = dict(zip(files, pool.map(partial(_hash, memo=memo), files), strict=True))
    if any(memo.get(file) != entry for file, entry in found.items()):
        _write_text(memo_path, json.dumps(memo | found))
    return {path: _of_frame(found[str(file)][1], frame) for path, (file, frame) in places.items()}


def _of_frame(digest: str, frame: int | None) -> str:
    return digest if frame is None else f"{digest}#{frame}"


def _hash(path: str, memo: dict[str, list[str]]) -> list[str]:
    try:
        stat = Path(path).stat()
        state = f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"
        if path in memo and memo[path][0] == state:
            return memo[path]
        with Path(path).open("rb") as file:
            return [state, hashlib.file_digest(file, "sha256").hexdigest()]
    except OSError as error:
        return ["", f"{path}: {error.strerror}"]


def _key(hashes: dict[str, str], preprocess: Preprocess) -> str:
    parts = [code_version(), json.dumps(preprocess.kept(), sort_keys=True)]
    parts += sorted(set(hashes.values()))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:24]


def _index(folder: Path) -> dict[str, dict[str, list[int]]]:
    found: dict[str, dict[str, list[int]]] = json.loads((folder / INDEX).read_text())
    return found


def _read(folder: Path, side: int, hashes: dict[str, str]) -> Store | None:
    """The store in this folder, or None when there is none or its files are cut."""
    try:
        index = json.loads((folder / INDEX).read_text())
        whole = (folder / PIXELS).stat().st_size == index["bytes"]
    except (OSError, json.JSONDecodeError, KeyError):
        return None
    if not whole:
        return None
    offsets, failed = index["offsets"], index["failures"]
    entries = {p: (offsets[h][0], offsets[h][1]) for p, h in hashes.items() if h in offsets}
    failures = {p: f"{p}: {failed[h]}" for p, h in hashes.items() if h in failed}
    return Store(folder, side, entries, failures)


def _build(making: Path, hashes: dict[str, str], preprocess: Preprocess) -> None:
    first = {digest: path for path, digest in reversed(hashes.items())}
    offsets: dict[str, tuple[int, int]] = {}
    failures: dict[str, str] = {}
    with (making / PIXELS).open("wb") as file:
        work = zip(first, _prepared(first.values(), preprocess), strict=True)
        for digest, made in track(work, description="preparing pictures", total=len(first)):
            if isinstance(made, str):
                failures[digest] = made
            else:
                offsets[digest] = (file.tell(), made.shape[2] if made.ndim == 3 else 0)
                file.write(np.ascontiguousarray(made).data)
        file.flush()
        os.fsync(file.fileno())
        size = file.tell()
    index = {"bytes": size, "offsets": offsets, "failures": failures, "steps": preprocess.kept()}
    _write_text(making / INDEX, json.dumps(index))


def _prepared(paths: Iterable[str], preprocess: Preprocess) -> Iterator[np.ndarray | str]:
    """Threads are enough: decoding, resizing and equalising run outside the interpreter's lock."""
    todo = list(paths)
    with ThreadPoolExecutor(_threads()) as pool:
        for start in range(0, len(todo), _AT_ONCE):  # so that a slow disk does not fill memory
            yield from pool.map(partial(_one, preprocess=preprocess), todo[start:][:_AT_ONCE])


def _one(path: str, preprocess: Preprocess) -> np.ndarray | str:
    try:
        return preprocess.pixels(decoded(content(path), path))
    except ImageError as error:
        return str(error).removeprefix(f"{path}: ")


def _take_place(making: Path, folder: Path, side: int, hashes: dict[str, str]) -> None:
    """Gives the folder its name; if another process was faster, its store is as good."""
    if folder.exists() and _read(folder, side, hashes) is None:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        making.replace(folder)
    except OSError:
        if _read(folder, side, hashes) is None:
            raise


def _write_text(path: Path, text: str) -> None:
    making = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        making.write_text(text)
        making.replace(path)
    finally:
        making.unlink(missing_ok=True)


def _threads() -> int:
    return len(os.sched_getaffinity(0))
