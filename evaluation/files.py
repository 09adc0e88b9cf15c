"""Files that are written whole or not at all."""

import json
import os
import re
import tempfile
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path
from typing import Any


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes `data` under a temporary name beside `path`, then renames it into place."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
        Path(name).chmod(0o644)  # mkstemp gives 0600, which a colleague could not read
        Path(name).replace(target)
    finally:
        Path(name).unlink(missing_ok=True)


def write_text(path: Path | str, text: str) -> None:
    """`write_bytes` of the text as UTF-8."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: object) -> None:
    """Strict JSON (no NaN, no Infinity), indented, with a newline at its end."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """The object in a JSON file; a file that is not a JSON object is refused by name."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a JSON {type(value).__name__}, not an object")
    return value


def file_names(names: Sequence[str]) -> list[str]:
    """A distinct file name for each picture: its own without suffix, numbered where two agree."""
    plain = [re.sub(r"[^\w-]+", "-", re.sub(r"\.\w+(?=(#\d+)?$)", "", name)) for name in names]
    found: dict[str, None] = {}  # in their order
    for name in plain:
        numbered = (f"{name}-{n}" for n in count(2))
        found[next(each for each in chain([name], numbered) if each not in found)] = None
    return list(found)
