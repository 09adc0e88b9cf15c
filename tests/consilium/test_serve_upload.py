"""Harmful and corrupt uploads are refused with a reason, and leave neither files nor memory."""

import asyncio
import gc
import io
import resource
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from fastapi import HTTPException
from starlette.testclient import TestClient

from consilium.inference.predictor import load_predictor
from consilium.serving.server import create_app
from consilium.serving.service import ServerBusy, ServerSettings, Service
from consilium.serving.upload import UploadForm, UploadLimits
from datamodules import images
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from tests.consilium.untrained import CLASSES, save_checkpoint

LIMITS = UploadLimits(max_bytes=1 << 20, max_files=8, max_pixels=1_000_000)
NAMES = (
    *("../../../etc/passwd", "C:\\windows\\win.ini", "a\r\nX-Evil: 1", "/dev/zero#0", "x" * 4000),
    *("\u202egnp.exe", "<img src=x onerror=alert(1)>.png", "nul\0l.png", "", "~/.ssh/id_rsa#1"),
)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    torch.manual_seed(1)
    module = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    file = save_checkpoint(module, Preprocess(size=32), tmp_path_factory.mktemp("one") / "one.ckpt")
    return create_app(load_predictor(file), ServerSettings(limits=LIMITS))


def valid_files():
    """A valid file of every format."""
    noise = np.random.default_rng(0).integers(0, 255, (60, 50, 3), np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 3)
    suffixes = (".png", ".jpg", ".tif", ".bmp", ".webp")
    encoded = [cv2.imencode(suffix, image)[1].tobytes() for suffix in suffixes]
    return [*encoded, dicom_file(image[..., 0])]


def dicom_file(image, **tags):
    from pydicom import Dataset, uid
    from pydicom.dataset import FileMetaDataset

    dataset, stream = Dataset(), io.BytesIO()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = tags.pop("syntax", uid.ExplicitVRLittleEndian)
    dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = image.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PhotometricInterpretation = 7, "MONOCHROME2"
    dataset.PixelData = image.tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def corrupted(data, rng):
    """The data cut, filled with zeros, with random bytes at its end, or with flipped bits."""
    kind, position = rng.integers(4), rng.integers(1, len(data))
    if kind == 0:
        return data[:position]
    if kind == 1:
        return data[:position] + bytes(rng.integers(1, 300)) + data[position + 40 :]
    if kind == 2:
        return data[:40] + rng.bytes(position)
    changed = bytearray(data)
    for _ in range(rng.integers(1, 9)):
        changed[rng.integers(min(200, len(changed)))] ^= 1 << rng.integers(8)
    return bytes(changed)


def png_chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content))  # fmt: skip


def png_file(width, height, *chunks):
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    pixels = png_chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    start = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header)
    return start + b"".join(chunks) + pixels + png_chunk(b"IEND", b"")


def decompression_bombs():
    """Small files that unpack to many bytes, or declare a huge size."""
    from pydicom import uid

    packed = zlib.compress(bytes(30 << 20), 9)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.png", bytes(20 << 20))
    image = np.zeros((20, 20), np.uint8)
    syntax = uid.DeflatedExplicitVRLittleEndian
    wide = (256, 40_000), (257, 40_000), (254, 1)
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in wide)
    return [
        png_file(60_000, 60_000),
        png_file(40_000, 26),  # slightly more pixels than are allowed
        png_file(0, 10),
        png_file(2**31 - 1, 2**31 - 1, png_chunk(b"zTXt", b"a\0\0" + packed)),
        png_file(1_000, 1_001, png_chunk(b"iCCP", b"a\0\0" + packed)),
        stream.getvalue(),
        packed,
        b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + tags + bytes(4),
        b"BM" + bytes(16) + struct.pack("<ii", 50_000, -50_000) + bytes(40),
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + b"\0\0\0\0" + b"\xff\xff\xff" * 2,
        dicom_file(image, EncapsulatedDocument=bytes(30 << 20), syntax=syntax),
        dicom_file(image, Rows=60_000, Columns=60_000),
    ]


OTHER_FILES = [
    b"", b"x", b"MZ\x90\0" + bytes(200), b"%PDF-1.7\n", b"PK\x03\x04" + bytes(99), b"\x1f\x8b" * 9,
    b"GIF89a\x01\0\x01\0", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", b"{}", bytes(140) + b"DICM",
    b"<html><script>alert(1)</script></html>", "\ufeffpicture".encode("utf-16"), b"#!/bin/sh\nid\n",
]  # fmt: skip


def invalid_forms(rng):
    """Bodies with damaged multipart syntax, and valid ones with wrong content types."""
    valid = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    )
    for _ in range(60):
        changed = bytearray(valid)
        for _ in range(rng.integers(1, 6)):
            changed[rng.integers(len(changed))] = rng.integers(256)
        yield bytes(changed[: rng.integers(1, len(changed))]), "multipart/form-data; boundary=b"
    parameters = ("", "; boundary=", "; boundary=" + "y" * 500)
    content_types = ("", "text/plain", "application/json", "image/png")
    for content_type in (*content_types, *(f"multipart/form-data{p}" for p in parameters)):
        yield valid, content_type


def test_more_than_five_hundred_harmful_uploads_are_refused(app, tmp_path, monkeypatch):
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setattr(tempfile, "tempdir", str(work))
    rng, outcomes, valid = np.random.default_rng(5), Counter(), valid_files()
    uploads = [*decompression_bombs(), *OTHER_FILES]
    uploads += [corrupted(valid[k % len(valid)], rng) for k in range(560)]
    with TestClient(app, base_url="http://127.0.0.1") as client:
        for index, data in enumerate(uploads):
            if index == 60:
                memory = resident_mebibytes()
            files = {"files": (NAMES[index % len(NAMES)], data)}
            response = client.post("/v1/predict", files=files, data={"saliency_maps": "false"})
            outcomes[check_response(response, data)] += 1
        for body, content_type in invalid_forms(rng):
            headers = {"Content-Type": content_type}
            response = client.post("/v1/predict", content=body, headers=headers)
            outcomes[check_response(response, None)] += 1
        last = client.post("/v1/predict", files={"files": ("a.png", valid[0])})
        metrics = client.get("/metrics").text
    assert outcomes["refused"] >= 500
    assert last.status_code == 200
    assert "consilium_images_in_progress 0.0\n" in metrics
    assert list(work.iterdir()) == []
    assert resident_mebibytes() - memory < 64


def check_response(response, data):
    """Requires a 4xx with a reason, unless the evaluation can read the bytes as well."""
    if response.status_code == 200:
        images.decode_bytes(np.frombuffer(data, np.uint8), max_pixels=LIMITS.max_pixels)
        return "readable"
    detail = response.json()["detail"]
    assert 400 <= response.status_code < 500, detail
    assert isinstance(detail, str)
    assert 5 < len(detail) < 500
    assert not {"\0", "\r", "\n"} & set(detail)
    return "refused"


def resident_mebibytes():
    """Resident memory of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def test_too_large_body_is_refused_by_its_declared_and_by_its_actual_length(app):
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    max_bytes = LIMITS.max_bytes

    def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(1 << 10):
            yield bytes(1 << 20)

    with TestClient(app, base_url="http://127.0.0.1") as client:
        declared = client.post(
            "/v1/predict", content=b"--b", headers={**headers, "Content-Length": f"{10**9}"}
        )
        streamed = client.post("/v1/predict", content=endless(), headers=headers)
        files = [("files", ("a.png", b"x"))] * (LIMITS.max_files + 1)
        too_many = client.post("/v1/predict", files=files)
    responses = (declared, streamed, too_many)
    assert [response.status_code for response in responses] == [413, 413, 400]
    details = [response.json()["detail"] for response in responses]
    limit = f"at most {max_bytes / 2**20:,.1f} MB"
    assert details[0] == f"953.7 MB are too large; {limit}"
    assert details[1].endswith(f" MB are too large; {limit}")
    assert "Maximum number of files is 8" in details[2]


def rgba16(side):
    """A small file whose pixels take 8 bytes each."""
    return cv2.imencode(".png", np.zeros((side, side, 4), np.uint16))[1].tobytes()


def test_decoded_bytes_are_limited_for_each_request_and_for_all_together(untrained_files):
    service = Service(load_predictor(untrained_files[0]), ServerSettings(limits=LIMITS))
    try:
        two, one = (UploadForm([("a.png", rgba16(900))] * n) for n in (2, 1))

        async def predict(form, others=0):
            with service._admission() as admit:
                admit(1, others)
                return await service._predict_form(form, partial(admit, 0))

        with pytest.raises(HTTPException, match=r"413: decoded images of 24\.7 MB are too large"):
            asyncio.run(predict(two))
        assert len(asyncio.run(predict(one)).predictions) == 1
        with pytest.raises(ServerBusy):
            asyncio.run(predict(one, others=8 * LIMITS.max_bytes + 8_000_000))
        assert service.num_bytes == service.num_images == 0
    finally:
        service.decoders.shutdown()
        service.batcher.close()
