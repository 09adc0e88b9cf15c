"""Reading and writing of files; a file is written completely or not at all, digests, signatures."""

import hashlib
import hmac
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from glob import escape
from itertools import chain, count
from pathlib import Path
from typing import Any, BinaryIO, get_args, get_origin
from uuid import uuid4

DIGEST, SIGNATURE_SUFFIX = "digest", ".signature"
KEY_VARIABLE, MIN_KEY_BYTES = "CONSILIUM_KEY", 16


@contextmanager
def atomic_file(path: Path | str) -> Iterator[BinaryIO]:
    """A stream into a temporary file beside `path`, renamed to `path` if no error occurs."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f"{_temporary_prefix(target)}{uuid4().hex[:8]}")
    try:
        with temporary.open("xb") as stream:  # readable by colleagues if the umask allows it
            yield stream
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


def remove_unfinished(path: Path) -> None:
    """Removes all temporary files of `atomic_file(path)`, also those that are being written."""
    for file in path.parent.glob(f"{escape(_temporary_prefix(path))}{'[0-9a-f]' * 8}"):
        file.unlink(missing_ok=True)


def _temporary_prefix(path: Path) -> str:
    """The name of a temporary file of `path`, without its random end."""
    return f".{path.name[:100]}."


def write_bytes(path: Path | str, data: bytes) -> None:
    """Writes a file completely or not at all."""
    with atomic_file(path) as stream:
        stream.write(data)


def write_text(path: Path | str, text: str) -> None:
    """Writes the text as UTF-8, completely or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path | str, value: object) -> None:
    """Writes strict JSON (no NaN, no Infinity), indented, with a newline at the end."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: Path | str) -> dict[str, Any]:
    """The object in a JSON file; anything else is a ValueError with the name of the file."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} contains a JSON {type(value).__name__}, not an object")
    return value


def json_digest(content: Mapping[str, Any], default: Callable[[Any], object] | None = None) -> str:
    """SHA-256 of plain values, the entry `DIGEST` excluded; `default` is that of `json.dumps`."""
    values = {name: value for name, value in content.items() if name != DIGEST}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"), default=default)
    return hashlib.sha256(text.encode()).hexdigest()


def with_digest(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content and its digest, which tells whether it was changed, but not who wrote it."""
    return {**content, DIGEST: json_digest(content)}


def require_digest(content: Mapping[str, Any], digest: str) -> None:
    """ValueError unless the digest stored in `content` is `digest`, the one computed from it."""
    if content.get(DIGEST) != digest:
        raise ValueError("was changed after it was written: its content does not match its digest")


def read_key(file: Path | None) -> bytes | None:
    """The signing key from a file, else from `CONSILIUM_KEY`, or None; ValueError if too short."""
    source = f"--key {file}" if file else KEY_VARIABLE
    key = file.read_bytes().strip() if file else os.environ.get(KEY_VARIABLE, "").strip().encode()
    if (file or key) and len(key) < MIN_KEY_BYTES:
        raise ValueError(f"{source}: {len(key)} bytes; a key has at least {MIN_KEY_BYTES}")
    return key or None


def signature(digest: str, key: bytes) -> str:
    """HMAC-SHA256 of a digest in hex: it can be made and verified with the key only."""
    return hmac.new(key, f"consilium signature of {digest}".encode(), "sha256").hexdigest()


def sign(file: Path, digest: str, key: bytes) -> Path:
    """Writes the signature of `digest` to `<file>.signature`; returns that path."""
    path = file.with_name(file.name + SIGNATURE_SUFFIX)
    write_text(path, signature(digest, key) + "\n")
    return path


def is_signed(file: Path, digest: str, key: bytes) -> bool | None:
    """Whether `<file>.signature` is of this digest and key; None if there is no such file."""
    path = file.with_name(file.name + SIGNATURE_SUFFIX)
    if not path.is_file():
        return None
    return hmac.compare_digest(path.read_bytes().strip(), signature(digest, key).encode())


@contextmanager
def naming(file: Path | str, error_class: type[ValueError] = ValueError) -> Iterator[None]:
    """Turns any error about the content of a file into one line that begins with the file's name.

    A file from elsewhere can contain anything, and what reads it can then raise anything.
    """
    try:
        yield
    except (OSError, ImportError):  # they name what is missing
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:400]
        if not isinstance(error, ValueError):
            reason = f"damaged ({type(error).__name__}: {reason})"
        elif reason.startswith(str(file)):
            raise
        raise error_class(f"{file}: {reason}") from error


def require_types(content: Mapping[str, Any], types: Mapping[str, Any]) -> None:
    """ValueError unless each name of `types` has a value of its type, such as `dict[str, int]`."""
    for name, hint in types.items():
        if name not in content:
            raise ValueError(f"{name!r} is missing")
        if not _is_of_type(content[name], hint):
            required = hint.__name__ if isinstance(hint, type) else hint
            raise ValueError(f"{name!r} is {str(content[name])[:60]}, not of type {required}")


def _is_of_type(value: object, hint: object) -> bool:
    """Whether a JSON value has the type `hint`, items of a list or dict included."""
    kind: Any = get_origin(hint) or hint
    arguments = get_args(hint)
    if kind is Any:
        return True
    if isinstance(value, bool) != (kind is bool):
        return False
    if not isinstance(value, int | float if kind is float else kind):
        return False
    if isinstance(value, dict) and arguments:
        pairs = value.items()
        return all(_is_of_type(k, arguments[0]) and _is_of_type(v, arguments[1]) for k, v in pairs)
    return not isinstance(value, list) or all(_is_of_type(v, arguments[0]) for v in value)


def unique_file_names(names: Sequence[str]) -> list[str]:
    """A distinct file name for each image: its name without suffix, numbered if it occurs twice."""
    stems = [re.sub(r"[^\w-]+", "-", re.sub(r"\.\w+(?=(#\d+)?$)", "", name)) for name in names]
    unique: dict[str, None] = {}  # a set that preserves the order
    for stem in stems:
        candidates = chain([stem], (f"{stem}-{n}" for n in count(2)))
        unique[next(name for name in candidates if name not in unique)] = None
    return list(unique)
