import cv2
import numpy as np
import pytest
import torch

from callbacks.heatmaps import Heatmaps, handful, visible
from lightning_modules import checkpoints

ADDED = ["--trainer.callbacks+", "callbacks.Heatmaps", "--trainer.callbacks.every", "2"]


def test_a_handful_takes_turns_among_the_classes():
    labels = np.array([2, 0, 0, 0, 1, 2, 0])
    assert handful(labels, 5) == [1, 4, 0, 2, 5]
    assert handful(labels, 99) == [1, 4, 0, 2, 5, 3, 6]


def test_the_fit_is_the_same_with_heatmaps(tiny, resnet, tmp_path):
    run = tiny.fit("resnet", tmp_path / "drawn", *ADDED)
    drawn = sorted(path.name for path in (run / "heatmaps").iterdir())
    assert drawn == ["epoch-001.png", "epoch-002.png"]
    first, last = (cv2.imread(str(run / "heatmaps" / name)) for name in drawn)
    assert first.shape == last.shape
    assert (first != last).any()
    plain, watched = (checkpoints.read(r / "last.ckpt")[1] for r in (resnet, run))
    assert all(torch.equal(plain[key], watched[key]) for key in plain)


def test_what_the_network_sees_is_made_visible():
    image = np.stack([np.array([[-2.0, 0.0], [1.0, 2.0]])] * 3)
    assert visible(image)[..., 0].tolist() == [[0, 128], [191, 255]]
    assert visible(np.ones((3, 2, 2))).max() == 0


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="every: 0 is not at least 1"):
        Heatmaps(every=0)
