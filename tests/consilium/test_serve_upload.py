"""Five hundred uploads that mean harm or are broken: each is refused with a reason."""

import gc
import io
import resource
import struct
import tempfile
import zipfile
import zlib
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from starlette.testclient import TestClient

from consilium.inference.predictor import load
from consilium.serving.app import make
from consilium.serving.service import Settings
from consilium.serving.upload import Limits
from datamodules import images
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from tests.consilium.saved import CLASSES, saved

MOST = Limits(bytes=1 << 20, pixels=1_000_000, files=8)
NAMES = (
    *("../../../etc/passwd", "C:\\windows\\win.ini", "a\r\nX-Evil: 1", "/dev/zero#0", "x" * 4000),
    *("\u202egnp.exe", "<img src=x onerror=alert(1)>.png", "nul\0l.png", "", "~/.ssh/id_rsa#1"),
)


@pytest.fixture(scope="module")
def app(tmp_path_factory):
    torch.manual_seed(1)
    module = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    file = saved(module, Preprocess(size=32), tmp_path_factory.mktemp("one") / "one.ckpt")
    return make(load(file), Settings(limits=MOST))


def whole():
    """A sound file of every format."""
    picture = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 255, (60, 50, 3), np.uint8),
                               (0, 0), 3)  # fmt: skip
    kinds = (".png", ".jpg", ".tif", ".bmp", ".webp")
    return [*(cv2.imencode(kind, picture)[1].tobytes() for kind in kinds), scan(picture[..., 0])]


def scan(picture, **tags):
    from pydicom import Dataset, uid
    from pydicom.dataset import FileMetaDataset

    data, stream = Dataset(), io.BytesIO()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = tags.pop("syntax", uid.ExplicitVRLittleEndian)
    data.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    data.Rows, data.Columns = picture.shape
    data.SamplesPerPixel, data.PixelRepresentation = 1, 0
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PhotometricInterpretation = 7, "MONOCHROME2"
    data.PixelData = picture.tobytes()
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(stream, enforce_file_format=True)
    return stream.getvalue()


def mutated(data, dice):
    """Cut, filled with zeros, with flipped bits, or of two files."""
    kind, at = dice.integers(4), dice.integers(1, len(data))
    if kind == 0:
        return data[:at]
    if kind == 1:
        return data[:at] + bytes(dice.integers(1, 300)) + data[at + 40 :]
    if kind == 2:
        return data[:40] + dice.bytes(at)
    changed = bytearray(data)
    for _ in range(dice.integers(1, 9)):
        changed[dice.integers(min(200, len(changed)))] ^= 1 << dice.integers(8)
    return bytes(changed)


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(
        ">I", zlib.crc32(kind + content))  # fmt: skip


def png(width, height, *more):
    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    flat = chunk(b"IDAT", zlib.compress(bytes(1 << 20)))
    start = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head)
    return start + b"".join(more) + flat + chunk(b"IEND", b"")


def bombs():
    """Small files that unpack to much, or say that they do."""
    from pydicom import uid

    packed = zlib.compress(bytes(30 << 20), 9)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("film.png", bytes(20 << 20))
    film = np.zeros((20, 20), np.uint8)
    syntax = uid.DeflatedExplicitVRLittleEndian
    wide = (256, 40_000), (257, 40_000), (254, 1)
    tags = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in wide)
    return [
        png(60_000, 60_000),
        png(40_000, 26),  # more pixels than are allowed, by little
        png(0, 10),
        png(2**31 - 1, 2**31 - 1, chunk(b"zTXt", b"a\0\0" + packed)),
        png(1_000, 1_001, chunk(b"iCCP", b"a\0\0" + packed)),
        stream.getvalue(),
        packed,
        b"II*\0\x08\0\0\0" + struct.pack("<H", 3) + tags + bytes(4),
        b"BM" + bytes(16) + struct.pack("<ii", 50_000, -50_000) + bytes(40),
        b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0" + b"\0\0\0\0" + b"\xff\xff\xff" * 2,
        scan(film, EncapsulatedDocument=bytes(30 << 20), syntax=syntax),
        scan(film, Rows=60_000, Columns=60_000),
    ]


STRANGE = [
    b"", b"x", b"MZ\x90\0" + bytes(200), b"%PDF-1.7\n", b"PK\x03\x04" + bytes(99), b"\x1f\x8b" * 9,
    b"GIF89a\x01\0\x01\0", b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>',
    b"<?xml version='1.0'?><!DOCTYPE a [<!ENTITY b 'c'>]><a>&b;</a>", b"{}", bytes(140) + b"DICM",
    b"<html><script>alert(1)</script></html>", "\ufeffpicture".encode("utf-16"), b"#!/bin/sh\nid\n",
]  # fmt: skip


def forms(dice):
    """Bodies that are hardly forms."""
    good = (
        b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\nx\r\n--b--\r\n'
    )
    for _ in range(60):
        changed = bytearray(good)
        for _ in range(dice.integers(1, 6)):
            changed[dice.integers(len(changed))] = dice.integers(256)
        yield bytes(changed[: dice.integers(1, len(changed))]), "multipart/form-data; boundary=b"
    multipart = ("", "; boundary=", "; boundary=" + "y" * 500)
    kinds = ("", "text/plain", "application/json", "image/png")
    for kind in (*kinds, *(f"multipart/form-data{rest}" for rest in multipart)):
        yield good, kind


def test_five_hundred_harmful_uploads(app, tmp_path, monkeypatch):
    kept = tmp_path / "kept"
    kept.mkdir()
    monkeypatch.chdir(kept)
    monkeypatch.setattr(tempfile, "tempdir", str(kept))
    dice, seen, files = np.random.default_rng(5), Counter(), whole()
    uploads = [*bombs(), *STRANGE, *(mutated(files[k % len(files)], dice) for k in range(560))]
    with TestClient(app, base_url="http://127.0.0.1") as asked:
        for at, data in enumerate(uploads):
            if at == 60:
                before = held()
            name = NAMES[at % len(NAMES)]
            reply = asked.post("/v1/predict", files={"files": (name, data)}, data={"maps": "false"})
            seen[refused_as_it_should_be(reply, data)] += 1
        for body, kind in forms(dice):
            reply = asked.post("/v1/predict", content=body, headers={"Content-Type": kind})
            seen[refused_as_it_should_be(reply, None)] += 1
        answered = asked.post("/v1/predict", files={"files": ("a.png", files[0])})
        gauges = asked.get("/metrics").text
    assert seen["refused"] >= 500
    assert answered.status_code == 200
    assert "consilium_places_taken 0\n" in gauges
    assert list(kept.iterdir()) == []
    assert held() - before < 64


def refused_as_it_should_be(reply, data):
    """A 4xx with a reason, unless the bytes are still a picture by the reader of the evaluation."""
    if reply.status_code == 200:
        images.pixels(np.frombuffer(data, np.uint8), max_pixels=MOST.pixels)
        return "still a picture"
    said = reply.json()["detail"]
    assert 400 <= reply.status_code < 500, said
    assert isinstance(said, str)
    assert 5 < len(said) < 500
    assert not {"\0", "\r", "\n"} & set(said)
    return "refused"


def held():
    """MiB that this process holds."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def test_a_gigabyte_is_refused_by_its_declaration_and_by_its_length(app):
    kind = {"Content-Type": "multipart/form-data; boundary=b"}

    def endless():
        yield b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
        for _ in range(1 << 10):
            yield bytes(1 << 20)

    with TestClient(app, base_url="http://127.0.0.1") as asked:
        said = asked.post(
            "/v1/predict", content=b"--b", headers={**kind, "Content-Length": f"{10**9}"}
        )
        long = asked.post("/v1/predict", content=endless(), headers=kind)
        many = [("files", ("a.png", b"x"))] * (MOST.files + 1)
        crowd = asked.post("/v1/predict", files=many)
    assert (said.status_code, long.status_code, crowd.status_code) == (413, 413, 400)
    assert said.json()["detail"] == f"{10**9} bytes; allowed are {1 << 20}"
    assert long.json()["detail"] == f"more than {1 << 20} bytes"
    assert "Maximum number of files is 8" in crowd.json()["detail"]
