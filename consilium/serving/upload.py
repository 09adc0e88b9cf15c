"""The body of a request: read into memory, within limits of size and time, and checked."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

MIN_RATE, GRACE_SECONDS = 1024, 5.0  # bytes a second of a body on average, after so many seconds
FIELDS = ("files", "group", "frame", "saliency_maps")


@dataclass(frozen=True)
class UploadLimits:
    """Limits of one request."""

    max_bytes: int = 64 << 20  # of its body
    max_files: int = 16
    max_pixels: int = 50_000_000  # of one image
    timeout: float = 30.0  # seconds for its body, and again for its response


@dataclass(frozen=True)
class UploadForm:
    """The fields of a request: names and contents of its images, and options for all of them."""

    files: list[tuple[str, bytes]]
    group: str = ""
    frame: int | None = None
    saliency_maps: bool = False


class InMemoryParser(MultiPartParser):
    """A parser that never writes a file to disk; the limit of the body limits memory."""

    spool_max_size = 1 << 62


def refuse_long_body(request: Request, limits: UploadLimits) -> None:
    """Raises HTTPException 413 if the Content-Length of a request is too large."""
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > limits.max_bytes:
        raise HTTPException(413, too_large(int(length), limits.max_bytes))


def too_large(size: int, max_bytes: int) -> str:
    """The reason of a refusal, such as `65.0 MB are too large; at most 64.0 MB`."""
    megabyte = 1 << 20
    return f"{size / megabyte:,.1f} MB are too large; at most {max_bytes / megabyte:,.1f} MB"


async def read_form(
    request: Request, limits: UploadLimits, admit: Callable[[int], None]
) -> UploadForm:
    """Reads the form of a request; raises HTTPException if it is invalid, too large or too slow.

    `admit` is called with the number of bytes of each piece of the body; it may raise an error.
    """
    content_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if content_type != "multipart/form-data":
        reason = f"content type {content_type[:80]!r} is not allowed; send multipart/form-data"
        raise HTTPException(415, reason)
    parser = InMemoryParser(request.headers, limited_body(request, limits, admit),
                            max_files=limits.max_files, max_fields=len(FIELDS),
                            max_part_size=1024)  # fmt: skip
    try:
        async with asyncio.timeout(limits.timeout):
            form = await parser.parse()
    except TimeoutError:
        raise HTTPException(
            408,
            "the body took too long: more than "
            f"{limits.timeout:g} s, or less than {MIN_RATE} bytes a second",
        ) from None
    except MultiPartException as error:
        raise HTTPException(400, f"the form is invalid: {error.message}") from None
    except ClientDisconnect:
        raise HTTPException(400, "the form is incomplete: the connection was closed") from None
    return await parse_fields(list(form.multi_items()))


async def limited_body(
    request: Request, limits: UploadLimits, admit: Callable[[int], None]
) -> AsyncGenerator[bytes, None]:
    """Yields the body in pieces; HTTPException 413 if it is too long, TimeoutError if too slow."""
    size, start, pieces = 0, time.monotonic(), request.stream()
    while True:
        seconds = GRACE_SECONDS + size / MIN_RATE - (time.monotonic() - start)
        async with asyncio.timeout(seconds):
            piece = await anext(pieces, None)
        if piece is None:
            return
        size += len(piece)
        if size > limits.max_bytes:
            raise HTTPException(413, too_large(size, limits.max_bytes))
        admit(len(piece))
        yield piece


async def discard_body(request: Request, limits: UploadLimits) -> None:
    """Reads a body without storing it, so that a client that is still sending gets the response."""
    with suppress(TimeoutError, ClientDisconnect, HTTPException):
        async with asyncio.timeout(limits.timeout):
            async for _ in limited_body(request, limits, lambda size: None):
                pass


async def parse_fields(items: list[tuple[str, UploadFile | str]]) -> UploadForm:
    """The fields of a form by type; HTTPException 400 if one is unknown, missing or invalid."""
    files, values = [], {}
    for name, value in items:
        if name not in FIELDS or isinstance(value, str) == (name == "files"):
            raise HTTPException(400, f"field {name[:40]!r} is not allowed; allowed are the files "
                                     f"'files' and the texts {str(FIELDS[1:])[1:-1]}")  # fmt: skip
        if isinstance(value, str):
            values[name] = value
        else:
            files.append((display_name(value.filename or "image"), await value.read()))
            await value.close()
    if not files:
        raise HTTPException(400, "field 'files' is missing; it must contain the images")
    frame, maps = values.get("frame", ""), values.get("saliency_maps", "false")
    if frame and not (frame.isascii() and frame.isdigit() and len(frame) < 7):
        raise HTTPException(400, f"frame is {frame[:20]!r}; it must be a whole number from 0")
    if maps not in ("true", "false"):
        raise HTTPException(400, f"saliency_maps is {maps[:20]!r}; it must be true or false")
    return UploadForm(files, values.get("group", ""), int(frame) if frame else None, maps == "true")


def display_name(name: str) -> str:
    """A client's file name without folders and unprintable characters, its last 80 characters."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[-80:] or "image"
