import cv2
import numpy as np

from consilium.inference import data_config
from consilium.inference.samples import example_images, augmentation_sheet, sample_rows


def listed(resnet):
    data = data_config.load_datamodule([str(resnet / "config.yaml")])
    return data, data.load_manifest()


def test_examples_are_of_each_class(resnet):
    _, manifest = listed(resnet)
    found = example_images(manifest, "train", each=2)
    assert [caption.split("\n")[0] for caption in found.captions] == [
        "none", "none", "simple", "simple", "comminuted", "comminuted"]  # fmt: skip
    assert len(set(found.captions)) == 6


def test_some_are_spread_over_a_split(resnet):
    _, manifest = listed(resnet)
    test = manifest.table[manifest.table["split"] == "test"]["id"].tolist()
    assert sample_rows(manifest, "test", 2)["id"].tolist() == [test[0], test[-1]]
    assert sample_rows(manifest, "test", 10_000)["id"].tolist() == test


def test_the_sheet_begins_with_the_picture_as_it_is(resnet):
    data, manifest = listed(resnet)
    drawn = cv2.imdecode(
        np.frombuffer(augmentation_sheet(manifest, data), np.uint8), cv2.IMREAD_GRAYSCALE
    )
    assert drawn.shape == (6 * 168, 8 * 168)
    pixels = data.preprocess.to_pixels(cv2.imread(manifest.table["path"].iloc[0], 0))
    whole = cv2.resize(pixels, (168, 168), interpolation=cv2.INTER_AREA)
    assert np.array_equal(drawn[:168, :168], whole)
