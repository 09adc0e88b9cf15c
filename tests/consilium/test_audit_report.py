import cv2
import numpy as np
import pytest

from consilium.inference.audit_report import augmentation_sheet, example_images
from consilium.inference.data_config import load_datamodule


@pytest.fixture
def data(resnet):
    return load_datamodule([str(resnet / "config.yaml")])


def test_examples_are_shown_for_each_class(data):
    captions = example_images(data.load_manifest(), "train", per_class=2).captions
    assert [caption.split("\n")[0] for caption in captions] == [
        "none", "none", "simple", "simple", "comminuted", "comminuted"]  # fmt: skip
    assert len(set(captions)) == 6


def test_the_augmentation_sheet_begins_with_the_image_without_augmentation(data):
    manifest = data.load_manifest()
    png = np.frombuffer(augmentation_sheet(manifest, data), np.uint8)
    sheet = cv2.imdecode(png, cv2.IMREAD_GRAYSCALE)
    assert sheet.shape == (6 * 168, 8 * 168)
    pixels = data.preprocess.to_pixels(cv2.imread(manifest.table["path"].iloc[0], 0))
    expected = cv2.resize(pixels, (168, 168), interpolation=cv2.INTER_AREA)
    assert np.array_equal(sheet[:168, :168], expected)
