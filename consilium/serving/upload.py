"""A request's body: read up to a limit and within a time, into memory alone."""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

FIELDS = ("files", "body_part", "frame", "maps")


@dataclass(frozen=True)
class Limits:
    """What one request may hold.

    Args:
        bytes: of its body.
        files: pictures in it.
        pixels: of a picture.
        seconds: for its body, and again for its answer.
    """

    bytes: int = 64 << 20
    files: int = 16
    pixels: int = 50_000_000
    seconds: float = 30.0


@dataclass(frozen=True)
class Form:
    """The fields of a request: names and bytes of its pictures, and what is asked of them."""

    files: list[tuple[str, bytes]]
    part: str = ""
    frame: int | None = None
    maps: bool = False


class InMemory(MultiPartParser):
    """A parser that never writes a picture to disk; the body's limit is the limit of memory."""

    spool_max_size = 1 << 62


def declared(request: Request, limits: Limits) -> int:
    """The length that a request says it has; the most it may have when it does not say."""
    length = request.headers.get("content-length", "")
    size = int(length) if length.isascii() and length.isdigit() else limits.bytes
    if size > limits.bytes:
        raise HTTPException(413, f"{size} bytes; allowed are {limits.bytes}")
    return size


async def read(request: Request, limits: Limits) -> Form:
    """The form of a request, or the status and reason why there is none."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "multipart/form-data":
        raise HTTPException(415, f"content type {kind!r}; send multipart/form-data")
    parser = InMemory(
        request.headers,
        capped(request, limits.bytes),
        max_files=limits.files,
        max_fields=len(FIELDS),
        max_part_size=1024,
    )
    try:
        async with asyncio.timeout(limits.seconds):
            form = await parser.parse()
    except TimeoutError:
        raise HTTPException(408, f"the body took more than {limits.seconds:g} s") from None
    except (MultiPartException, ClientDisconnect) as error:
        said = getattr(error, "message", "") or "the connection was closed"
        raise HTTPException(400, f"not a form that can be read: {said}") from None
    return await fields(list(form.multi_items()))


async def capped(request: Request, most: int) -> AsyncGenerator[bytes, None]:
    """The body piece by piece, refused as soon as it is too long."""
    size = 0
    async for piece in request.stream():
        size += len(piece)
        if size > most:
            raise HTTPException(413, f"more than {most} bytes")
        yield piece


async def drained(request: Request, limits: Limits) -> None:
    """Lets a body go by, so that a client that is still sending can read why it was refused."""
    try:
        async with asyncio.timeout(limits.seconds):
            async for _ in capped(request, limits.bytes):
                pass
    except (TimeoutError, ClientDisconnect, HTTPException):
        return


async def fields(items: list[tuple[str, UploadFile | str]]) -> Form:
    """The form's fields, each checked."""
    files, said = [], {}
    for name, value in items:
        if name not in FIELDS or isinstance(value, str) == (name == "files"):
            raise HTTPException(400, f"field {name[:40]!r}: allowed are the files `files`, and the "
                                "texts body_part, frame, maps")  # fmt: skip
        if isinstance(value, str):
            said[name] = value
        else:
            files.append((shown(value.filename or "picture"), await value.read()))
            await value.close()
    if not files:
        raise HTTPException(400, "field 'files' is missing: it holds the pictures")
    return Form(files, said.get("body_part", ""), _frame(said), _maps(said))


def shown(name: str) -> str:
    """A client's file name as a label: no folders, nothing that cannot be printed, not long."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    return "".join(c for c in last if c.isprintable())[-80:] or "picture"


def _frame(said: dict[str, str]) -> int | None:
    text = said.get("frame", "")
    if text and not (text.isascii() and text.isdigit() and len(text) < 7):
        raise HTTPException(400, f"frame is {text[:20]!r}; it must be a number from 0")
    return int(text) if text else None


def _maps(said: dict[str, str]) -> bool:
    text = said.get("maps", "false")
    if text not in ("true", "false"):
        raise HTTPException(400, f"maps is {text[:20]!r}; it must be true or false")
    return text == "true"
