"""Arrays that an audit has computed, on disk: the next audit goes on where this one ends."""

import fcntl
import hashlib
import io
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import cv2
import numpy as np

HASHED_FILES = ("images.py", "dicom.py", "audit/alignment.py", "audit/file_stats.py",
                "audit/near_duplicates.py", "audit/thumbnails.py")  # fmt: skip
_LOCK, _DIGEST_BYTES = ".lock", 32


class Memo:
    """Arrays by key in files of a folder; a file that is damaged or cut short is computed again.

    What it lacks is copied from the folders ``others`` of other audits, if they have it.
    As a context manager it locks the folder: another audit that uses it waits for the end of this.
    """

    def __init__(self, folder: Path, others: Sequence[Path] = ()) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.others = folder, others
        self._results: set[Path] = set()

    def __enter__(self) -> Self:
        self._lock = (self.folder / _LOCK).open("ab")
        with suppress(OSError):  # of a file system without locks
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another audit that uses {self.folder}", flush=True)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._lock.close()

    def file(self, key: str) -> Path:
        """The file of the array of a key."""
        return self.folder / f"{key}.npy"

    def load(
        self, key: str, compute: Callable[[], np.ndarray], is_result: bool = False
    ) -> np.ndarray:
        """The array of a key: saved, copied from ``others``, or else computed; then it is saved.

        Of these, ``remove_steps`` keeps only those loaded with ``is_result``.
        """
        if is_result:
            self._results.add(self.file(key))
        name = self.file(key).name
        if (array := _read(self.file(key))) is not None:
            return array
        copies = (_read(folder / name) for folder in self.others)
        array = next((copy for copy in copies if copy is not None), None)
        if array is None:
            array = compute()
        self.save(key, array)
        return array

    def save(self, key: str, array: np.ndarray) -> None:
        """Writes an array completely or not at all."""
        stream = io.BytesIO()
        np.save(stream, array)
        temporary = self.folder / f".{os.getpid()}-{key}.npy"
        data = stream.getbuffer()
        with temporary.open("wb") as file:
            file.write(data)
            file.write(hashlib.sha256(data).digest())
        temporary.replace(self.file(key))

    def remove_steps(self) -> None:
        """Removes all arrays but those that this audit has loaded with ``is_result``."""
        for file in set(self.folder.glob("*.npy")) - self._results:
            file.unlink()


def _read(file: Path) -> np.ndarray | None:
    """The array that ``Memo.save`` wrote; None if the file is missing, damaged or cut short."""
    with suppress(OSError, ValueError, EOFError):
        data = file.read_bytes()
        if hashlib.sha256(data[:-_DIGEST_BYTES]).digest() == data[-_DIGEST_BYTES:]:
            return np.asarray(np.load(io.BytesIO(data)))
    return None


def key_of(*parts: str | np.ndarray) -> str:
    """A hash of texts and arrays as 32 hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part.tobytes()
        digest.update(len(data).to_bytes(8, "big") + data)
    return digest.hexdigest()[:32]


def _hash_sources() -> str:
    """A hash of ``HASHED_FILES`` and of OpenCV's version."""
    texts = [(Path(__file__).parents[1] / name).read_text("utf-8") for name in HASHED_FILES]
    return key_of(cv2.__version__, *texts)


#: A hash of the code that reads and compares images, and of OpenCV's version. Files that change
#: while a program runs do not change what it computes: they are hashed when it imports this.
AUDIT_VERSION = _hash_sources()
