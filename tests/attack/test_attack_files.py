"""Mutated images, uploads, tables and folders end in a result or in one line.

No attack changes a file outside of its own folder.
"""

import json

import numpy as np
import pytest
import torch

from consilium.inference.predictor import load_predictor
from consilium.serving.upload import UploadLimits
from datamodules.images import decode_bytes
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from tests.attack import datasets, images
from tests.attack.outcomes import Outcomes
from tests.consilium.serving import open_client
from tests.consilium.untrained import CLASSES, save_checkpoint

LIMITS = UploadLimits(max_bytes=1 << 20, max_files=4, max_pixels=1_000_000, timeout=20.0)


def numbers(few: int, many: int):
    """A small number for every run, and the full one for the exhaustive tests."""
    return pytest.mark.parametrize("count", [few, pytest.param(many, marks=pytest.mark.exhaustive)])


def require_pixels(data: bytes) -> None:
    """Decodes a file; pixels must be 8 bits of at most 4 megapixels."""
    pixels = decode_bytes(np.frombuffer(data, np.uint8), None, LIMITS.max_pixels)
    assert pixels.dtype == np.uint8
    assert pixels.shape[0] * pixels.shape[1] <= LIMITS.max_pixels


@numbers(60, 200)
def test_mutated_images(count):
    outcomes = Outcomes("images")
    for number, data in enumerate(images.mutated_images(count)):
        outcomes.call(f"image {number}", lambda data=data: require_pixels(data))
    outcomes.require(count)


@numbers(100, 400)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_mutated_dicom_files(count):
    pytest.importorskip("pydicom")
    outcomes = Outcomes("DICOM")
    for number, data in enumerate(images.mutated_dicom_files(count)):
        outcomes.call(f"DICOM {number}", lambda data=data: require_pixels(data))
    outcomes.require(count)


@numbers(60, 500)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_uploads(count, tmp_path):
    torch.manual_seed(0)
    module = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    file = save_checkpoint(module, Preprocess(size=32), tmp_path / "one.ckpt")
    outcomes = Outcomes("uploads")
    with open_client(load_predictor(file), limits=LIMITS) as client:
        for number, upload in enumerate(images.uploads(count)):
            response = client.post("/v1/predict", **upload)
            if response.status_code == 200:
                rows = [[*p["probabilities"].values()] for p in response.json()["predictions"]]
                assert np.isfinite(rows).all()
                outcomes.counts["result"] += 1
            elif 400 <= response.status_code < 500:
                outcomes.count_error(f"upload {number}", json.loads(response.text)["detail"])
            else:
                outcomes.failures.append(f"upload {number}: {response.status_code} {response.text}")
    outcomes.require(count)


@numbers(12, 60)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_malformed_tables(count, tmp_path, capsys):
    outcomes = Outcomes("tables")
    for file in datasets.malformed_tables(tmp_path / "data", count):
        outcomes.command(file.name, capsys, "audit", file, "-o", tmp_path / "out")
    outcomes.require(count)


@numbers(8, 20)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_malformed_folders(count, tmp_path, capsys):
    outcomes, folders = Outcomes("folders"), datasets.malformed_folders(tmp_path / "data")
    for _, folder in zip(range(count), folders, strict=False):
        outcomes.command(folder.name, capsys, "audit", folder, "-o", tmp_path / "out")
        outcomes.command(folder.name, capsys, "init", folder, "-o", tmp_path / folder.name)
    outcomes.require(2 * count)
