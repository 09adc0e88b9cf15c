"""Reads an image file of any supported format into one 8-bit gray or RGB array."""

import errno
import hashlib
import io
import math
import os
import re
import stat
import struct
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL import BmpImagePlugin, Image, WebPImagePlugin
from rich.progress import track

from datamodules import dicom

IMAGE_FORMATS = ("png", "jpeg", "tiff", "bmp", "webp", "dicom")
MAX_BYTES = 1 << 29
_TO_BGR = {3: cv2.COLOR_RGB2BGR, 4: cv2.COLOR_RGBA2BGRA}
MAX_PIXELS = 100_000_000
MAX_PARTS = 100_000  # PNG chunks, JPEG markers or TIFF tags: far more than a real image has
_SIGNATURES = {
    b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpeg", b"II*\0": "tiff", b"MM\0*": "tiff",
    b"BM": "bmp",
}  # fmt: skip
_BIT_DEPTHS = (8, 10, 12, 14, 16)  # used by detectors
_TIFF_FOR_PILLOW = (34925, 50000, 50001)  # LZMA, ZSTD and WebP compression, which OpenCV lacks
_TIFF_OF_FLOATS = (32844, 32845)  # color spaces that OpenCV decodes to floats: LogL and LogLuv
_TIFF_NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 16: "Q", 17: "q"}  # by type
_PILLOW_MODES = ("L", "I", "I;16", "I;16B", "F", "RGB")  # of arrays that need no conversion
_FLAGS = cv2.IMREAD_ANYCOLOR | cv2.IMREAD_ANYDEPTH  # applies the EXIF orientation and drops alpha


class ImageError(ValueError):
    """An image file that cannot be read; the message begins with the path of the file."""


@dataclass(frozen=True)
class ImageHeader:
    """Size and number of pages of an image file, read without decoding."""

    width: int  # in pixels, before any EXIF rotation
    height: int
    pages: int = 1  # more than one only in TIFF and animated WebP
    is_gray: bool = False  # with or without alpha, although OpenCV returns RGB
    white_is_zero: bool = False  # of which OpenCV and Pillow invert only 8-bit pixels
    is_for_pillow: bool = False  # whether OpenCV lacks its compression
    bytes_per_pixel: float = 4  # of the decoded pixels at most, before they are scaled to 8 bits
    buffer_bytes: int = 0  # of the encoded and the decoded strip or tile of a TIFF, at most


def read_image(path: str | Path) -> np.ndarray:
    """Pixels of a file as uint8: (H, W) if it is gray, else (H, W, 3) in RGB order.

    A frame of a multi-frame file is selected by its number: ``scan.dcm#3``. Deeper pixels are
    scaled to 8 bits from the smallest of 8, 10, 12, 14, 16 bits that their maximum fits into.
    The still image of an animated PNG is read, as by programs that show no animations.
    """
    return decode(read_file_bytes(path), path)


def find_unreadable(paths: list[str]) -> dict[str, str]:
    """The reason by path for each file that cannot be decoded; tries all, on all cores."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        reasons = track(pool.map(_reading_error, paths), "reading every image", total=len(paths))
        return {path: why for path, why in zip(paths, reasons, strict=True) if why is not None}


def _reading_error(path: str) -> str | None:
    """Why a file cannot be decoded; None if it can."""
    try:
        read_image(path)
        return None
    except ImageError as error:
        return str(error)


def file_state(path: str | Path) -> str:
    """Size, times and inode of a file, which change with its content; OSError if it is none."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "not a file")
    times = f"{status.st_mtime_ns}-{status.st_ctime_ns}"
    return f"{status.st_size}-{times}-{status.st_ino}"


def read_file_bytes(path: str | Path) -> np.ndarray:
    """The bytes of a file as uint8 (n,); ImageError if n is 0 or above ``MAX_BYTES``."""
    file = split_frame_number(path)[0]
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):  # a pipe or a device has no end
            raise ImageError(f"{file}: not a file")
        if (size := status.st_size) > MAX_BYTES:
            raise ImageError(f"{file}: {size} bytes; allowed are {MAX_BYTES}")
        data = np.fromfile(file, dtype=np.uint8)
    except OSError as error:
        raise ImageError(f"{file}: {error.strerror or 'cannot be read'}") from error
    if not data.size:
        raise ImageError(f"{file}: the file is empty")
    return data


def decode(data: np.ndarray, path: str | Path) -> np.ndarray:
    """``read_image`` from a file's bytes; ``path`` gives frame number and name in messages."""
    file, frame = split_frame_number(path)
    try:
        return decode_bytes(data, frame)
    except ValueError as error:
        raise ImageError(f"{file}: {error}") from error


def split_frame_number(path: str | Path) -> tuple[Path, int | None]:
    """The file of a path such as ``scan.dcm#3``, and its frame number if it has one."""
    match = re.fullmatch(r"(.+)#(\d+)", str(path))
    if match and not Path(path).exists():
        return Path(match.group(1)), int(match.group(2))
    return Path(path), None


def content_digest(data: np.ndarray, path: str) -> str:
    """SHA-256 of a file's bytes, with the frame number: equal for identical copies."""
    digest, frame = hashlib.sha256(data.data).hexdigest(), split_frame_number(path)[1]
    return f"{digest}#{frame}" if frame else digest


def content_hashes(paths: list[str]) -> np.ndarray:
    """int64 hash (n,) of n images: equal for identical copies, whatever their names.

    Each file is read as a whole once, however many of its frames are among the images.
    """
    images = [split_frame_number(path) for path in paths]
    files = list(dict.fromkeys(file for file, _ in images))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        digests = dict(zip(files, pool.map(_file_digest, files), strict=True))
    names = [digests[file] + (b"#%d" % frame if frame else b"") for file, frame in images]
    hashes = (hashlib.sha256(name).digest()[:8] for name in names)
    return np.fromiter((int.from_bytes(h, "big", signed=True) for h in hashes), np.int64)


def _file_digest(file: Path) -> bytes:
    """SHA-256 of a file's bytes; ImageError if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").digest()
    except OSError as error:
        raise ImageError(f"{file}: {error.strerror or 'cannot be read'}") from error


def decode_bytes(
    data: np.ndarray, frame: int | None = None, max_pixels: int = MAX_PIXELS
) -> np.ndarray:
    """``read_image`` from encoded bytes; ValueError with a reason that names no file."""
    kind = detect_format(data[:132].tobytes())
    if kind is None:
        start = data[:12].tobytes()
        raise ValueError(f"begins with {start!r}, which is none of {', '.join(IMAGE_FORMATS)}")
    if kind == "dicom":
        return dicom.decode_dicom(data.tobytes(), frame, max_pixels)
    header = read_header(kind, data)
    dicom.check_size(header.width, header.height, max_pixels)
    dicom.check_frame(frame, header.pages, "file.tif")
    decode_pixels = _decode_with_pillow if header.is_for_pillow else _decode_with_opencv
    pixels = decode_pixels(_without_animation(data) if kind == "png" else data, header, frame)
    brightness = _to_eight_bits(pixels)
    return 255 - brightness if header.white_is_zero and pixels.dtype != np.uint8 else brightness


def decoded_bytes(data: np.ndarray, max_pixels: int = MAX_PIXELS) -> int:
    """Bytes of memory that decoding takes at most, by the header; ValueError if it is refused."""
    kind = detect_format(data[:132].tobytes())
    if kind is None or kind == "dicom":
        return dicom.decoded_bytes(data.tobytes(), max_pixels)
    header = read_header(kind, data)
    dicom.check_size(header.width, header.height, max_pixels)
    pixels = int(header.width * header.height * header.bytes_per_pixel)
    memory = pixels + max(pixels, header.buffer_bytes)  # a copy, or before it a strip
    return memory + len(data) * header.is_for_pillow


def _decode_with_opencv(data: np.ndarray, header: ImageHeader, frame: int | None) -> np.ndarray:
    """Gray (H, W) or RGB (H, W, 3) in the bit depth of the file; ValueError if it is damaged."""
    try:
        if frame:
            _, pages = cv2.imdecodemulti(data, _FLAGS, range=(frame, frame + 1))
            image = pages[0] if pages else None
        else:
            image = cv2.imdecode(data, _FLAGS)
    except cv2.error as error:
        raise ValueError(f"OpenCV cannot decode it ({error.err})") from error
    if image is None:
        raise ValueError("damaged or cut short: OpenCV cannot decode it")
    if image.ndim == 3 and header.is_gray:
        return np.ascontiguousarray(image[..., 0])
    return np.asarray(image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_BGR2RGB))


def _decode_with_pillow(data: np.ndarray, header: ImageHeader, frame: int | None) -> np.ndarray:
    """As ``_decode_with_opencv``, for TIFF compressions that OpenCV lacks."""
    try:
        file = Image.open(io.BytesIO(data.tobytes()), formats=["TIFF"])
        file.seek(frame or 0)
        mode = "L" if file.mode in ("1", "LA") else "RGB"
        pixels = np.asarray(file if file.mode in _PILLOW_MODES else file.convert(mode))
    except (OSError, SyntaxError, TypeError, KeyError, RuntimeError, struct.error) as error:
        raise ValueError(f"damaged or cut short: Pillow cannot decode it ({error})") from error
    return pixels.astype(pixels.dtype.newbyteorder("="))


def _to_eight_bits(image: np.ndarray) -> np.ndarray:
    """uint8 pixels, scaled from one of ``_BIT_DEPTHS`` or floats from 0 to 1; else ValueError."""
    if image.dtype == np.uint8:
        return image
    low, high = float(image.min()), float(image.max())
    if image.dtype.kind == "f" and 0.0 <= low <= high <= 1.0:
        return np.asarray(np.rint(image * 255.0), dtype=np.uint8)
    if image.dtype != np.uint16:
        allowed = "8 or 16 bits without sign, or floats from 0 to 1"
        raise ValueError(f"{image.dtype} pixels from {low:g} to {high:g}; allowed are {allowed}")
    top = next(2**bits - 1 for bits in _BIT_DEPTHS if high < 2**bits)
    return np.asarray(cv2.convertScaleAbs(image, alpha=255.0 / top))  # no copy in floats


def detect_format(data: bytes) -> str | None:
    """One of ``IMAGE_FORMATS`` by the first 132 bytes, whatever the name of the file.

    DICOM comes first: its preamble may contain the header of a TIFF file.
    """
    if data[128:132] == b"DICM":
        return "dicom"
    if data[:4] == b"RIFF":
        return "webp" if data[8:12] == b"WEBP" else None
    return next((kind for start, kind in _SIGNATURES.items() if data.startswith(start)), None)


def read_header(kind: str, data: np.ndarray) -> ImageHeader:
    """The header of a file of this format; ValueError if it is truncated or inconsistent."""
    try:
        header = _HEADER_READERS[kind](data)
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    except (struct.error, IndexError, SyntaxError, OSError) as error:
        raise ValueError(f"its {kind} header is cut or damaged") from error
    if header.width < 1 or header.height < 1 or header.pages < 1:
        raise ValueError(f"its {kind} header gives {header.width} x {header.height} pixels")
    return header


def _bmp_header(data: np.ndarray) -> ImageHeader:
    """Width and height of a BMP; ValueError if its format is that of OS/2."""
    if data[14] == 12:  # size of the old header
        raise ValueError("an OS/2 BMP, whose colors OpenCV decodes to gray; convert it to PNG")
    return ImageHeader(*BmpImagePlugin.BmpImageFile(io.BytesIO(data[:4096].tobytes())).size)


def _webp_header(data: np.ndarray) -> ImageHeader:
    """Width and height of a WebP file, and 2 pages for any animation."""
    image = WebPImagePlugin.WebPImageFile(io.BytesIO(data.tobytes()))
    return ImageHeader(*image.size, pages=2 if image.is_animated else 1)


def _png_header(data: np.ndarray) -> ImageHeader:
    """Width, height and pixel type of a PNG.

    Read by hand: Pillow walks any number of chunks, and OpenCV allocates a false chunk length.
    """
    width, height, depth, color_type = struct.unpack(">IIBB", data[16:26].tobytes())
    _png_chunks(data)
    size = {0: 1, 4: 4, 6: 4}.get(color_type, 3) * (2 if depth == 16 else 1)
    return ImageHeader(width, height, is_gray=color_type in (0, 4), bytes_per_pixel=size)


def _png_chunks(data: np.ndarray) -> list[tuple[bytes, slice]]:
    """Kind of each chunk of a PNG, and the slice of ``data`` that it fills."""
    offset, chunks = 8, []
    for _ in range(MAX_PARTS):
        length, kind = struct.unpack(">I4s", data[offset : offset + 8].tobytes())
        chunks.append((kind, slice(offset, offset + 12 + length)))
        offset += 12 + length
        if offset > len(data):
            raise IndexError("a chunk is longer than the file")
        if kind == b"IEND":
            return chunks
    raise IndexError("no end chunk")


def _without_animation(data: np.ndarray) -> np.ndarray:
    """The PNG without its animation, whose first frame OpenCV decodes instead of the image."""
    chunks = _png_chunks(data)
    still_parts = [place for kind, place in chunks if kind not in (b"acTL", b"fcTL", b"fdAT")]
    if len(still_parts) == len(chunks):
        return data
    return np.concatenate([data[:8], *(data[place] for place in still_parts)])


def _jpeg_header(data: np.ndarray) -> ImageHeader:
    """Width and height of a JPEG.

    Read by hand: Pillow walks any number of markers and accepts a file without an end marker.
    """
    offset, size = 2, None
    for _ in range(MAX_PARTS):
        marker, length = int(data[offset + 1]), int(data[offset + 2]) << 8 | int(data[offset + 3])
        if data[offset] == marker == 0xFF:  # any number of fill bytes may precede a marker
            offset += 1
            continue
        if data[offset] != 0xFF or length < 2:
            raise IndexError("expected a marker")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[offset + 5 : offset + 9].tobytes())
            size = width, height
        offset += 2 + length
        if marker == 0xDA:
            break
    if size is None or data[offset:].tobytes().rfind(b"\xff\xd9") < 0:
        raise IndexError("no frame marker or no end marker")
    return ImageHeader(*size)


def _tiff_header(data: np.ndarray) -> ImageHeader:
    """Number of TIFF pages that are no thumbnails, and the size of the largest page."""
    pages = _tiff_pages(data)
    # thumbnails count as well: OpenCV decodes the first page even if it is marked as a thumbnail
    sizes = [(tags.get(256, 0), tags.get(257, 0)) for tags in pages]
    width, height = max(sizes, key=math.prod, default=(0, 0))
    memory = [_tiff_memory(tags, len(data)) for tags in pages] or [(0, 0)]
    return ImageHeader(
        width, height, pages=len(pages) - sum(tags.get(254, 0) & 1 for tags in pages) or 1,
        white_is_zero={tags.get(262) for tags in pages} == {0},
        is_for_pillow=any(tags.get(259) in _TIFF_FOR_PILLOW for tags in pages),
        bytes_per_pixel=max(pixel for pixel, _ in memory),
        buffer_bytes=max(strip for _, strip in memory),
    )  # fmt: skip


def _tiff_memory(tags: dict[int, int], file_size: int) -> tuple[float, int]:
    """Bytes per decoded pixel, and bytes of the buffers of a strip or tile.

    ``decoded_bytes`` doubles the first for a copy; deep pixels count 1.5 times for a second copy.
    """
    width, height, samples, color = (tags.get(tag, 1) for tag in (256, 257, 277, 262))
    bits = 32 if color in _TIFF_OF_FLOATS else tags.get(258, 1)
    size = next((size for size in (1, 2, 4) if bits <= 8 * size), 8)
    is_gray = samples == 1 and color in (0, 1)
    decoded = (1 if is_gray else 3) * size * (1.5 if size > 2 else 1)
    if tags.get(259) in _TIFF_FOR_PILLOW:  # whose images take 4 bytes, before and after conversion
        decoded += size if is_gray else 4
    values = tags.get(322, width) * tags.get(323, min(height, tags.get(278, height)))
    strip = values * samples * size
    encoded = min(file_size, 10 * strip + (1 << 20))  # libtiff reads no more of a strip or tile
    return decoded, encoded + strip + 4 * values * (size == 1)  # OpenCV reads 8 bits as RGBA


def _tiff_pages(data: np.ndarray) -> list[dict[int, int]]:
    """For each page, the integer values by tag number; of several values the first.

    Read by hand: Pillow walks any number of pages and tags, and counts thumbnails as pages.
    """
    order = "<" if data[0] == ord("I") else ">"
    (offset,) = struct.unpack(order + "I", data[4:8].tobytes())
    pages: dict[int, dict[int, int]] = {}
    num_tags = 0
    while offset and offset not in pages:
        (count,) = struct.unpack(order + "H", data[offset : offset + 2].tobytes())
        num_tags += count
        if num_tags > MAX_PARTS:
            raise IndexError("too many tags")
        end = offset + 2 + 12 * count
        tags = pages[offset] = {}
        entries = struct.iter_unpack(order + "HHI4s", data[offset + 2 : end].tobytes())
        for tag, kind, length, value in entries:
            if tag in tags:  # of which decoders may use another one
                raise IndexError("two tags with the same number")
            if number := _TIFF_NUMBERS.get(kind):
                number = order + number
                size = struct.calcsize(number)
                if length * size > 4:  # it is elsewhere
                    (at,) = struct.unpack(order + "I", value)
                    value = data[at : at + size].tobytes()
                (tags[tag],) = struct.unpack(number, value[:size])
        (offset,) = struct.unpack(order + "I", data[end : end + 4].tobytes())
    return list(pages.values())


_HEADER_READERS = {
    "png": _png_header, "bmp": _bmp_header, "webp": _webp_header, "jpeg": _jpeg_header,
    "tiff": _tiff_header,
}  # fmt: skip


def read_thumbnail(path: Path, size: int = 192) -> bytes:
    """An image file as PNG with its longer side at most `size`; raises if it cannot be read."""
    return encode_png(downscale(read_image(path), size))


def downscale(image: np.ndarray, side: int) -> np.ndarray:
    """The image with its longer side at most `side`; a smaller one is returned as it is."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    if scale >= 1:
        return image
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(cv2.resize(image, size, interpolation=cv2.INTER_AREA))


def encode_png(pixels: np.ndarray) -> bytes:
    """Gray, RGB or RGBA pixels as PNG."""
    bgr = cv2.cvtColor(pixels, _TO_BGR[pixels.shape[2]]) if pixels.ndim == 3 else pixels
    return np.asarray(cv2.imencode(".png", bgr)[1]).tobytes()
