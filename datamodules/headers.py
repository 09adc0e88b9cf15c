"""What the first bytes of a picture file say: its format, its size, its number of pages."""

import struct
from dataclasses import dataclass

import numpy as np

PARTS = 100_000  # chunks, markers or tags: far more than a picture has, soon gone through
FORMATS = ("png", "jpeg", "tiff", "bmp", "webp", "dicom")


@dataclass(frozen=True)
class Header:
    """Size and pages before anything is decoded.

    Args:
        width: In pixels, before any EXIF turn.
        height: In pixels.
        pages: Pictures in the file; more than one only in TIFF and animated WebP.
        gray: Whether the file says gray (with or without alpha) where the decoder gives RGB.
    """

    width: int
    height: int
    pages: int = 1
    gray: bool = False


def format_of(data: bytes) -> str | None:
    """One of ``FORMATS`` by the first bytes, whatever the file is called.

    DICOM comes first: its preamble may hold the header of a TIFF file.
    """
    if data[128:132] == b"DICM":
        return "dicom"
    if data[:8] == b"\x89PNG\r\n\x1a\n":
        return "png"
    if data[:3] == b"\xff\xd8\xff":
        return "jpeg"
    if data[:4] in (b"II*\0", b"MM\0*"):
        return "tiff"
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    return "bmp" if data[:2] == b"BM" else None


def header(kind: str, data: np.ndarray) -> Header:
    """The header of a file of this format; ValueError when it is cut or makes no sense."""
    try:
        found = _READERS[kind](data)
    except (struct.error, IndexError) as error:
        raise ValueError(f"its {kind} header is cut or damaged") from error
    if found.width < 1 or found.height < 1 or found.pages < 1:
        raise ValueError(f"its {kind} header says {found.width} x {found.height} pixels")
    return found


def _png(data: np.ndarray) -> Header:
    """Goes from chunk to chunk: a decoder would first make room for a length that is a lie."""
    width, height, _, color = struct.unpack(">IIBB", data[16:26].tobytes())
    at = 8
    for _ in range(PARTS):
        length, kind = struct.unpack(">I4s", data[at : at + 8].tobytes())
        at += 12 + length
        if at > len(data):
            raise IndexError("a chunk is longer than the file")
        if kind == b"IEND":
            return Header(width, height, gray=color in (0, 4))
    raise IndexError("no end")


def _bmp(data: np.ndarray) -> Header:
    width, height = struct.unpack("<ii", data[18:26].tobytes())
    return Header(abs(width), abs(height))


def _webp(data: np.ndarray) -> Header:
    kind, start = data[12:16].tobytes(), data[20:30].tobytes()
    if kind == b"VP8X":
        width = 1 + int.from_bytes(start[4:7], "little")
        height = 1 + int.from_bytes(start[7:10], "little")
        return Header(width, height, pages=2 if start[0] & 2 else 1)
    if kind == b"VP8L":
        bits = int.from_bytes(start[1:5], "little")
        return Header(1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF))
    width, height = struct.unpack("<HH", start[6:10])
    return Header(width & 0x3FFF, height & 0x3FFF)


def _jpeg(data: np.ndarray) -> Header:
    """Goes from marker to marker up to the frame; the file must also have an end after it."""
    at, size = 2, None
    for _ in range(PARTS):
        marker, length = int(data[at + 1]), int(data[at + 2]) << 8 | int(data[at + 3])
        if data[at] == marker == 0xFF:  # any number of fill bytes may precede a marker
            at += 1
            continue
        if data[at] != 0xFF or length < 2:
            raise IndexError("no marker where one must be")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9].tobytes())
            size = width, height
        at += 2 + length
        if marker == 0xDA:
            break
    if size is None or data[at:].tobytes().rfind(b"\xff\xd9") < 0:
        raise IndexError("no frame or no end")
    return Header(*size)


def _tiff(data: np.ndarray) -> Header:
    """Counts the pages that are not thumbnails, and gives the size of the largest of all."""
    order = "<" if data[0] == ord("I") else ">"
    (at,) = struct.unpack(order + "I", data[4:8].tobytes())
    sizes, seen, parts, thumbnails = [(0, 0)], set(), 0, 0
    while at and at not in seen:
        seen.add(at)
        (count,) = struct.unpack(order + "H", data[at : at + 2].tobytes())
        parts += count
        if parts > PARTS:
            raise IndexError("more tags than a picture has")
        entries = data[at + 2 : at + 2 + 12 * count].tobytes()
        tags = dict(_tiff_tag(order, entries[k : k + 12]) for k in range(0, 12 * count, 12))
        thumbnails += tags.get(254, 0) & 1
        sizes.append((tags.get(256, 0), tags.get(257, 0)))
        (at,) = struct.unpack(order + "I", data[at + 2 + 12 * count :][:4].tobytes())
    # a thumbnail's size counts as well: the first page is decoded whatever it calls itself
    width, height = max(sizes, key=lambda size: size[0] * size[1])
    return Header(width, height, pages=len(seen) - thumbnails or 1)


def _tiff_tag(order: str, entry: bytes) -> tuple[int, int]:
    tag, kind = struct.unpack(order + "HH", entry[:4])
    short = struct.unpack(order + "HH", entry[8:12])[0]
    return tag, short if kind == 3 else struct.unpack(order + "I", entry[8:12])[0]


_READERS = {"png": _png, "bmp": _bmp, "webp": _webp, "jpeg": _jpeg, "tiff": _tiff}
