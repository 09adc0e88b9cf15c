"""Mutated images and DICOM files, and uploads of them in mutated forms."""

import io
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from PIL import Image

Upload = dict[str, Any]  # arguments of a TestClient's post
SUFFIXES = (".png", ".jpg", ".tif", ".bmp", ".webp")
SYNTAXES = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.1.99",
            "1.2.840.10008.1.2.2", "1.2.840.10008.1.2.4.70", "1.2.3")  # fmt: skip
TAG_VALUES = (None, "", 0, 1, -1, 65535, float("nan"), 1e308, "x", [0, 0], [1.5, 2.5], 4096)
TAGS = ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated", "BitsStored", "HighBit",
        "PixelRepresentation", "PhotometricInterpretation", "NumberOfFrames", "RescaleSlope",
        "RescaleIntercept", "WindowCenter", "WindowWidth", "PixelPaddingValue",
        "PlanarConfiguration", "VOILUTFunction", "PixelPaddingRangeLimit")  # fmt: skip


def sample(side: int = 40) -> np.ndarray:
    noise = np.random.default_rng(0).integers(0, 255, (side, side + 8, 3), np.uint8)
    return cv2.GaussianBlur(noise, (0, 0), 3)


def image_files() -> list[bytes]:
    """A valid file of every format, in 8 and 16 bits, gray and color, with pages and animation."""
    image, files = sample(), list[bytes]()
    for pixels in (image, image[..., 0], image[..., 0].astype(np.uint16) * 257):
        for suffix in SUFFIXES if pixels.dtype == np.uint8 else (".png", ".tif"):
            files.append(cv2.imencode(suffix, pixels)[1].tobytes())
    frames = [Image.fromarray(image), Image.fromarray(image[::-1].copy())]
    for format_name in ("TIFF", "WEBP", "PNG"):
        stream = io.BytesIO()
        frames[0].save(stream, format_name, save_all=True, append_images=frames[1:])
        files.append(stream.getvalue())
    return files


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four random changes of bytes, of which more are near the start."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 5)):
        reach = len(changed) if rng.random() < 0.5 else min(len(changed), 200)
        at, length = int(rng.integers(0, max(1, reach))), int(rng.integers(1, 9))
        kind = rng.integers(0, 6)
        if kind == 0:
            changed[at : at + length] = rng.bytes(length)
        elif kind == 1:
            changed[at : at + length] = b"\xff" * length
        elif kind == 2:
            changed[at : at + length] = bytes(length)
        elif kind == 3:
            del changed[at:]
        elif kind == 4:
            changed[at:at] = rng.bytes(length)
        else:
            changed[at:at] = changed[at : at + 100 * length]
    return bytes(changed)


def mutated_images(count: int) -> Iterator[bytes]:
    rng, files = np.random.default_rng(1), image_files()
    for number in range(count):
        yield mutate(files[number % len(files)], rng)


def dicom_file(syntax: str = SYNTAXES[1], **tags: object) -> bytes:
    """A DICOM file with any values of its elements; ValueError if pydicom cannot write it."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset

    dataset, stream, image = Dataset(), io.BytesIO(), sample()[..., 0].astype(np.uint16) * 16
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.PixelData = image.tobytes()
    for name, value in tags.items():
        if value is None:
            dataset.pop(name, None)
        else:
            setattr(dataset, name, value)
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def mutated_dicom_files(count: int) -> Iterator[bytes]:
    """Half have wrong values of elements, which are well written; half have changed bytes."""
    rng, valid, number = np.random.default_rng(2), [], 0
    for syntax in SYNTAXES[:4]:
        little = syntax != SYNTAXES[3]
        valid.append(dicom_file(syntax) if little else dicom_file())
    while number < count:
        if number % 2:
            number += 1
            yield mutate(valid[number % len(valid)], rng)
            continue
        names = rng.choice(TAGS, int(rng.integers(1, 4)), replace=False)
        tags = {str(name): TAG_VALUES[rng.integers(len(TAG_VALUES))] for name in names}
        try:
            data = dicom_file(SYNTAXES[rng.integers(len(SYNTAXES))], **tags)
        except Exception:  # values that pydicom refuses to write
            continue
        number += 1
        yield data


FORM_VALUES = ("", "true", "-1", "0", "9" * 40, "\x00", "é" * 300, "nan", "[]")
FILE_NAMES = ("a.png", "../../etc/passwd", "a\r\nX-Evil: 1", "", "x" * 3000, "~/.ssh/id_rsa#1",
              "nul\0l.png", "<img src=x>.png", "CON")  # fmt: skip
HEADERS = ({}, {"content-type": "text/plain"}, {"content-type": "multipart/form-data"},
           {"content-type": "multipart/form-data; boundary=é"}, {"content-length": "-1"},
           {"authorization": "Bearer \xff"}, {"content-encoding": "gzip"})  # fmt: skip


def uploads(count: int) -> Iterator[Upload]:
    """Valid and mutated images under odd names, in forms with odd fields and headers."""
    rng, bodies = np.random.default_rng(3), [*image_files(), dicom_file(), b"", b"GIF89a", b"%PDF"]
    for _ in range(count):
        files = []
        for _ in range(rng.integers(1, 4)):
            body = bodies[rng.integers(len(bodies))]
            body = mutate(body, rng) if rng.random() < 0.6 and body else body
            field = "files" if rng.random() < 0.95 else "file"
            files.append((field, (FILE_NAMES[rng.integers(len(FILE_NAMES))], body)))
        names = ("frame", "group", "saliency_maps", "other")
        data = {name: FORM_VALUES[rng.integers(len(FORM_VALUES))]
                for name in names if rng.random() < 0.15}  # fmt: skip
        headers = HEADERS[rng.integers(len(HEADERS))] if rng.random() < 0.2 else {}
        upload: Upload = {"files": files, "data": data}
        if headers:
            headers = {k: v.encode("latin-1") for k, v in headers.items()}
            body = mutate(files[0][1][1] or b"x", rng)
            upload = {"content": body, "headers": headers}
        yield upload
