"""One frame of a DICOM file as an 8-bit picture; needs the extra ``dicom``."""

import io
import struct
import zlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydicom import Dataset

DEFLATED = b"1.2.840.10008.1.2.1.99"
# What pydicom is known to raise on damaged files; anything else would be a fault of ours.
DAMAGE = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
    OverflowError,
    struct.error,
    zlib.error,
)


def pixels(data: bytes, frame: int | None, max_pixels: int) -> np.ndarray:
    """uint8 (H, W) or (H, W, 3): modality LUT, then window, then MONOCHROME1 turned round.

    Raises:
        ValueError: With the reason, without the file's name.
    """
    try:
        from pydicom import dcmread, errors  # an extra: not everybody has DICOM files
    except ImportError as error:
        raise ValueError("DICOM needs the extra: pip install 'consilium[dicom]'") from error
    try:
        _refuse_bomb(data, 8 * max_pixels)
        dataset = dcmread(io.BytesIO(data))
        _check(dataset, frame, max_pixels)
        return _picture(dataset, frame or 0)
    except (*DAMAGE, errors.BytesLengthException, errors.InvalidDicomError) as error:
        raise ValueError(f"DICOM that cannot be read ({error})") from error


def _refuse_bomb(data: bytes, most: int) -> None:
    """Unpacks a file that is deflated as a whole and lets it go, before pydicom keeps it all."""
    start = data[132:144]
    ends = 144 + int.from_bytes(start[8:], "little") if start[:4] == b"\2\0\0\0" else len(data)
    if DEFLATED not in data[132 : min(ends, 132 + (1 << 16))]:
        return
    unpacked, rest, inflate = 0, data[ends:], zlib.decompressobj(-zlib.MAX_WBITS)
    while rest and not inflate.eof:
        unpacked += len(inflate.decompress(rest, 1 << 20))
        rest = inflate.unconsumed_tail
        if unpacked > most:
            raise ValueError(f"unpacks to more than {most} bytes")


def _check(dataset: "Dataset", frame: int | None, max_pixels: int) -> None:
    if str(dataset.PhotometricInterpretation) == "PALETTE COLOR":  # its values are no brightness
        raise ValueError("PhotometricInterpretation is PALETTE COLOR; export the picture as RGB")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frame is None and frames > 1:
        raise ValueError(f"{frames} frames; name one by its number, as in 'file.dcm#0'")
    if frame is not None and frame >= frames:
        raise ValueError(f"frame is {frame}; the file has the frames 0 to {frames - 1}")
    if int(dataset.Rows) * int(dataset.Columns) > max_pixels:
        raise ValueError(f"{dataset.Columns} x {dataset.Rows} pixels; allowed are {max_pixels}")


def _picture(dataset: "Dataset", frame: int) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, pixel_array

    raw = np.asarray(pixel_array(dataset, index=frame))
    if raw.ndim == 3:
        return _eight_bits(raw / (2.0 ** int(dataset.BitsStored) - 1))
    values = np.asarray(apply_modality_lut(raw, dataset), dtype=np.float64)
    shown = _windowed(values, dataset)
    dark = str(dataset.PhotometricInterpretation) == "MONOCHROME1"
    return _eight_bits(1.0 - shown if dark else shown)


def _windowed(values: np.ndarray, dataset: "Dataset") -> np.ndarray:
    """0 to 1 by the file's VOI table or first window, else from its least to its largest value."""
    if "VOILUTSequence" in dataset:
        return _by_table(values, dataset)
    if "WindowCenter" not in dataset or "WindowWidth" not in dataset:
        low, high = float(values.min()), float(values.max())
        return (values - low) / max(high - low, 1e-12)
    center, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
    kind = str(dataset.get("VOILUTFunction") or "LINEAR")
    if kind == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(-4.0 * (values - center) / width)))
    if kind == "LINEAR":  # the standard's own definition, half a step off LINEAR_EXACT
        center, width = center - 0.5, max(width - 1.0, 1e-12)
    return np.asarray(np.clip((values - center) / width + 0.5, 0.0, 1.0))


def _by_table(values: np.ndarray, dataset: "Dataset") -> np.ndarray:
    from pydicom.pixels import apply_voi

    table = dataset.VOILUTSequence[0]
    bits = int(table.LUTDescriptor[2])
    shown = np.asarray(apply_voi(values.astype(np.int32), dataset), dtype=np.float64)
    return shown / (2.0**bits - 1)


def _first(value: "float | Sequence[float]") -> float:
    return float(np.atleast_1d(np.asarray(value, dtype=np.float64))[0])


def _eight_bits(shown: np.ndarray) -> np.ndarray:
    return np.asarray(np.rint(np.clip(shown, 0.0, 1.0) * 255.0), dtype=np.uint8)
