"""Decodes one frame of a DICOM file, and reads its header; needs the extra ``dicom``."""

import io
import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from pydicom import Dataset

MISSING_EXTRA = "DICOM needs the extra: pip install 'consilium[dicom]'"
TAGS = {  # columns of a manifest, by the name of the tag
    "PatientID": "patient", "StudyInstanceUID": "study", "ViewPosition": "view_position",
    "Manufacturer": "manufacturer",
}  # fmt: skip
_SIZE_TAGS = ["Rows", "Columns", "SamplesPerPixel", "BitsAllocated"]
_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
DEFLATED_TRANSFER_SYNTAX = b"1.2.840.10008.1.2.1.99"
# Exceptions that pydicom raises for damaged files; any other exception is a bug of this module.
DAMAGED_FILE_ERRORS = (
    ValueError, TypeError, KeyError, IndexError, AttributeError, NotImplementedError, RuntimeError,
    OSError, EOFError, OverflowError, struct.error, zlib.error,
)  # fmt: skip


def decode_dicom(data: bytes, frame: int | None, max_pixels: int) -> np.ndarray:
    """A frame as uint8 (H, W[, 3]): modality LUT, then window, then inversion of MONOCHROME1."""
    try:
        from pydicom import dcmread, errors  # an extra: not everybody has DICOM files
    except ImportError as error:
        raise ValueError(MISSING_EXTRA) from error
    try:
        _refuse_decompression_bomb(data, 8 * max_pixels)
        dataset = dcmread(io.BytesIO(data))
        _check_header(dataset, frame, max_pixels)
        return _render(dataset, frame or 0)
    except (*DAMAGED_FILE_ERRORS, errors.BytesLengthException, errors.InvalidDicomError) as error:
        raise ValueError(f"DICOM that cannot be read ({error})") from error


def decoded_bytes(data: bytes, max_pixels: int) -> int:
    """Bytes of memory that decoding takes at most, by the header; ValueError if it is damaged."""
    try:
        from pydicom import dcmread, errors
    except ImportError as error:
        raise ValueError(MISSING_EXTRA) from error
    if DEFLATED_TRANSFER_SYNTAX in data[132 : _end_of_meta(data)]:
        return 8 * max_pixels  # it is unpacked as a whole
    try:
        header = dcmread(io.BytesIO(data), stop_before_pixels=True, specific_tags=_SIZE_TAGS)
        rows, columns, samples, bits = (int(header.get(name) or 1) for name in _SIZE_TAGS)
        check_size(columns, rows, max_pixels)
        further = 10 if bits <= 16 else 50  # bytes per value; deeper ones are scaled in floats
        return len(data) + rows * columns * max(samples, 1) * (max(bits, 8) // 8 + further)
    except (*DAMAGED_FILE_ERRORS, errors.BytesLengthException, errors.InvalidDicomError) as error:
        raise ValueError(f"DICOM that cannot be read ({error})") from error


def read_tags(file: Path) -> dict[str, str]:
    """Values of ``TAGS`` by manifest column; "" for what a file lacks, or if it is damaged."""
    try:
        from pydicom import dcmread, errors
    except ImportError as error:
        raise ValueError(f"{file}: {MISSING_EXTRA}") from error
    try:
        dataset = dcmread(file, stop_before_pixels=True, specific_tags=list(TAGS))
        return {name: str(dataset.get(tag) or "").strip() for tag, name in TAGS.items()}
    except (*DAMAGED_FILE_ERRORS, errors.BytesLengthException, errors.InvalidDicomError):
        return dict.fromkeys(TAGS.values(), "")


def _refuse_decompression_bomb(data: bytes, max_bytes: int) -> None:
    """Raises ValueError if a deflated file inflates to more than ``max_bytes``.

    Inflates it in small parts, because pydicom inflates it as a whole.
    """
    end = _end_of_meta(data)
    if DEFLATED_TRANSFER_SYNTAX not in data[132:end]:
        return
    unpacked, rest, inflate = 0, data[end:], zlib.decompressobj(-zlib.MAX_WBITS)
    while rest and not inflate.eof:
        unpacked += len(inflate.decompress(rest, 1 << 20))
        rest = inflate.unconsumed_tail
        if unpacked > max_bytes:
            raise ValueError(f"unpacks to more than {max_bytes} bytes")


def _end_of_meta(data: bytes) -> int:
    """Offset at which group 2 (file meta) ends; its stated length may be missing or false."""
    offset = 132
    while data[offset : offset + 2] == b"\2\0":
        is_long = data[offset + 4 : offset + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        start, size = (offset + 8, 4) if is_long else (offset + 6, 2)
        offset = start + size + int.from_bytes(data[start : start + size], "little")
    return offset


def _check_header(dataset: "Dataset", frame: int | None, max_pixels: int) -> None:
    """Raises ValueError unless the file has this frame, in a size and color that are allowed."""
    if not any(name in dataset for name in _PIXELS):
        kind = dataset.SOPClassUID.name.removesuffix(" Storage")
        raise ValueError(f"{kind}, modality {dataset.get('Modality')}, has no image")
    if str(dataset.PhotometricInterpretation) == "PALETTE COLOR":  # its values are no brightness
        raise ValueError("PhotometricInterpretation is PALETTE COLOR; export the image as RGB")
    check_frame(frame, int(dataset.get("NumberOfFrames") or 1), "file.dcm")
    check_size(int(dataset.Columns), int(dataset.Rows), max_pixels)


def check_frame(frame: int | None, num_frames: int, example: str) -> None:
    """Raises ValueError if no frame of several is selected, or one that does not exist."""
    if frame is None and num_frames > 1:
        raise ValueError(f"{num_frames} frames; select one by its number, as in '{example}#0'")
    if frame is not None and frame >= num_frames:
        raise ValueError(f"frame is {frame}; the file has the frames 0 to {num_frames - 1}")


def check_size(width: int, height: int, max_pixels: int) -> None:
    """Raises ValueError if an image has more than ``max_pixels``."""
    if width * height > max_pixels:
        raise ValueError(f"{width} x {height} pixels; allowed are {max_pixels}")


def _render(dataset: "Dataset", frame: int) -> np.ndarray:
    """The pixels of a frame as uint8 (H, W) or (H, W, 3)."""
    from pydicom.pixels import pixel_array

    raw = np.asarray(pixel_array(dataset, index=frame))
    if raw.ndim == 3:
        scale = 255.0 / (2.0 ** int(dataset.BitsStored) - 1)
        return np.asarray(cv2.convertScaleAbs(raw, alpha=scale))  # no copy in floats
    if raw.dtype.kind == "f" or raw.dtype.itemsize > 2:
        return _gray_levels(raw, np.ones(raw.shape, dtype=bool), dataset)
    low, high = int(raw.min()), int(raw.max())
    index = raw.astype(np.int32) - low  # of a table of all values: takes a tenth of the memory
    occurs = np.zeros(high - low + 1, dtype=bool)
    occurs[index] = True
    table = _gray_levels(np.arange(low, high + 1, dtype=raw.dtype), occurs, dataset)
    return np.asarray(table[index])


def _gray_levels(stored: np.ndarray, occurs: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """uint8 gray level of each stored value; `occurs` tells which are in the image.

    Padding is black. A slope or window without meaning is ignored, as the image would be black.
    """
    is_padding = _is_padding(stored, dataset)
    slope, intercept = (_first_number(dataset, f"Rescale{name}") for name in ("Slope", "Intercept"))
    has_units = "RescaleSlope" not in dataset or bool(slope and intercept is not None)
    values = _modality_values(stored, dataset) if has_units else stored.astype(np.float64)
    brightness = _apply_window(values, dataset) if has_units else None
    if brightness is None:
        used = values[occurs & ~is_padding]
        low, high = (float(used.min()), float(used.max())) if used.size else (0.0, 1.0)
        brightness = (values - low) / max(high - low, 1e-12)
    if str(dataset.PhotometricInterpretation) == "MONOCHROME1":
        brightness = 1.0 - brightness
    return _to_eight_bits(np.where(is_padding, 0.0, brightness))


def _modality_values(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """float64 values by the modality LUT, or by rescale slope and intercept."""
    from pydicom.pixels import apply_modality_lut

    return np.asarray(apply_modality_lut(stored, dataset), dtype=np.float64)


def _is_padding(stored: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """Mask of the stored values that pad the area around the image."""
    first = _first_number(dataset, "PixelPaddingValue")
    if first is None:
        return np.zeros(stored.shape, dtype=bool)
    last = _first_number(dataset, "PixelPaddingRangeLimit")
    last = first if last is None else last
    return np.asarray((stored >= min(first, last)) & (stored <= max(first, last)))


def _first_number(dataset: "Dataset", name: str) -> float | None:
    """The first number of a DICOM element; None if it is missing, empty or not finite."""
    try:
        value = float(np.ravel(dataset.get(name))[0])
    except (TypeError, ValueError, IndexError):
        return None
    return value if np.isfinite(value) else None


def _apply_window(values: np.ndarray, dataset: "Dataset") -> np.ndarray | None:
    """Brightness, 0 to 1, by the VOI LUT or first window of the file; None without either."""
    if "VOILUTSequence" in dataset:
        from pydicom.pixels import apply_voi

        brightness = np.asarray(apply_voi(values.astype(np.int32), dataset), dtype=np.float64)
        return brightness / (2.0 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    center, width = _first_number(dataset, "WindowCenter"), _first_number(dataset, "WindowWidth")
    if center is None or width is None or width <= 0:
        return None
    kind = str(dataset.get("VOILUTFunction") or "LINEAR")
    if kind == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - center) / width)))
    if kind == "LINEAR":  # the definition of the standard, half a step off LINEAR_EXACT
        center, width = center - 0.5, max(width - 1.0, 1e-12)
    return np.asarray(np.clip((values - center) / width + 0.5, 0.0, 1.0))


def _to_eight_bits(brightness: np.ndarray) -> np.ndarray:
    """uint8 gray levels of brightness from 0 to 1."""
    return np.asarray(np.rint(np.clip(brightness, 0.0, 1.0) * 255.0), dtype=np.uint8)
