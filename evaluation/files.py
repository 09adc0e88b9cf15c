"""Reading and writing of files; a file is written completely or not at all."""

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4


@contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """A stream into a temporary file beside `path`, renamed to `path` if no error occurs."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name[:100]}.{uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as stream:  # readable by colleagues if the umask allows it
            yield stream
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes a file completely or not at all."""
    with atomic_file(path) as stream:
        stream.write(data)


def write_text(path: Path | str, text: str) -> None:
    """Writes the text as UTF-8, as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: object) -> None:
    """Writes strict JSON (no NaN, no Infinity), indented, with a newline at the end."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """The object in a JSON file; anything else is a ValueError with the name of the file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} contains a JSON {type(value).__name__}, not an object")
    return value


def unique_file_names(names: Sequence[str]) -> list[str]:
    """A distinct file name for each image: its name without suffix, numbered if it occurs twice."""
    stems = [re.sub(r"[^\w-]+", "-", re.sub(r"\.\w+(?=(#\d+)?$)", "", name)) for name in names]
    unique: dict[str, None] = {}  # a set that preserves the order
    for stem in stems:
        candidates = chain([stem], (f"{stem}-{n}" for n in count(2)))
        unique[next(name for name in candidates if name not in unique)] = None
    return list(unique)
