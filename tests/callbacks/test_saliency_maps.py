import cv2
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from callbacks import EMA, BestAndLastCheckpoint
from callbacks.saliency_maps import SaliencyMaps, balanced_positions, to_rgb
from datamodules import ImageDataModule, Phantoms
from datamodules.preprocess import Preprocess
from evaluation.reports.run import hashed_id
from lightning_modules import ImageClassifier, checkpoints

ARGUMENTS = ["--trainer.callbacks+", "callbacks.SaliencyMaps",
             "--trainer.callbacks.every_n_epochs", "2"]  # fmt: skip


def test_images_are_taken_from_the_classes_in_turn():
    labels = np.array([2, 0, 0, 0, 1, 2, 0])
    assert balanced_positions(labels, 5) == [1, 4, 0, 2, 5]
    assert balanced_positions(labels, 99) == [1, 4, 0, 2, 5, 3, 6]


@pytest.mark.exhaustive
def test_saliency_maps_do_not_change_the_fit(tiny, resnet, tmp_path):
    run = tiny.fit("resnet", tmp_path / "with_maps", *ARGUMENTS)
    files = sorted((run / "saliency_maps").iterdir())
    assert [file.name for file in files] == ["epoch-001.png", "epoch-002.png"]
    first, last = (cv2.imread(str(file)) for file in files)
    assert first.shape == last.shape
    assert (first != last).any()
    expected, actual = (checkpoints.read(r / "last.ckpt")[1] for r in (resnet, run))
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


class RecordingSaliencyMaps(SaliencyMaps):
    """Records the hash of the explained weights and the ids in the captions."""

    def __init__(self):
        super().__init__()
        self.weights, self.captions = [], []

    def explain(self, module):
        self.weights.append(checkpoints.weights_hash(module.state_dict()))
        return super().explain(module)

    def plot(self, panels, ids):
        self.captions.append(list(ids))
        return super().plot(panels, ids)


@pytest.mark.parametrize("is_averaged", [False, True])
def test_maps_are_of_the_validated_and_saved_weights(is_averaged, tmp_path):
    names, maps = ["none", "simple", "comminuted"], RecordingSaliencyMaps()
    source = Phantoms(
        num_patients=12, images_per_patient=1, val=0.3, root=str(tmp_path / "phantoms")
    )
    data = ImageDataModule(source, names, Preprocess(size=32), batch_size=4, num_workers=0)
    callbacks = [BestAndLastCheckpoint(), *([EMA(0.9)] if is_averaged else []), maps]
    trainer = L.Trainer(default_root_dir=tmp_path, max_epochs=2, callbacks=callbacks,
                        accelerator="cpu", devices=1, logger=DummyLogger(),
                        enable_progress_bar=False, enable_model_summary=False,
                        use_distributed_sampler=False)  # fmt: skip
    trainer.fit(ImageClassifier(names, "test_resnet", image_size=32), data)
    assert maps.weights[-1] == checkpoints.read(tmp_path / "last.ckpt")[0].measured_weights
    assert maps.weights[0] != maps.weights[1]
    hashed = [hashed_id(name) for name in maps.ids]
    assert maps.captions == [maps.ids, hashed] * 2  # in the file, and for loggers


def test_a_preprocessed_image_is_scaled_to_the_full_range():
    image = np.stack([np.array([[-2.0, 0.0], [1.0, 2.0]])] * 3)
    assert to_rgb(image)[..., 0].tolist() == [[0, 128], [191, 255]]
    assert to_rgb(np.ones((3, 2, 2))).max() == 0


@pytest.mark.parametrize("name", ["every_n_epochs", "num_images"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name}: 0 is not at least 1"):
        SaliencyMaps(**{name: 0})
