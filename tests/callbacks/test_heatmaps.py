import cv2
import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from callbacks import EMA, BestAndLastCheckpoint
from callbacks.saliency_maps import SaliencyMaps, handful, visible
from datamodules import ImageDataModule, Phantoms
from datamodules.preprocess import Preprocess
from evaluation.reports.answers import code
from lightning_modules import ImageClassifier, checkpoints

ADDED = ["--trainer.callbacks+", "callbacks.SaliencyMaps", "--trainer.callbacks.every", "2"]


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


class Told(SaliencyMaps):
    """Notes whose weights were looked at, and which ids stood in each picture."""

    def __init__(self):
        super().__init__()
        self.looked, self.named = [], []

    def look(self, module):
        self.looked.append(checkpoints.weights_hash(module.state_dict()))
        return super().look(module)

    def draw(self, shown, ids):
        self.named.append(list(ids))
        return super().draw(shown, ids)


@pytest.mark.parametrize("averaged", [False, True])
def test_maps_are_of_the_weights_that_were_measured_and_saved(averaged, tmp_path):
    names, told = ["none", "simple", "comminuted"], Told()
    films = Phantoms(patients=12, films=1, val=0.3, root=str(tmp_path / "films"))
    data = ImageDataModule(films, names, Preprocess(size=32), batch_size=4, workers=0)
    callbacks = [BestAndLastCheckpoint(), *([EMA(0.9)] if averaged else []), told]
    trainer = L.Trainer(default_root_dir=tmp_path, max_epochs=2, callbacks=callbacks,
                        accelerator="cpu", devices=1, logger=DummyLogger(),
                        enable_progress_bar=False, enable_model_summary=False,
                        use_distributed_sampler=False)  # fmt: skip
    trainer.fit(ImageClassifier(names, "test_resnet", image_size=32), data)
    assert told.looked[-1] == checkpoints.read(tmp_path / "last.ckpt")[0].measured_weights
    assert told.looked[0] != told.looked[1]
    assert told.named == [told.ids, [code(name) for name in told.ids]] * 2  # kept, and sent


def test_what_the_network_sees_is_made_visible():
    image = np.stack([np.array([[-2.0, 0.0], [1.0, 2.0]])] * 3)
    assert visible(image)[..., 0].tolist() == [[0, 128], [191, 255]]
    assert visible(np.ones((3, 2, 2))).max() == 0


def test_wrong_settings_are_named():
    with pytest.raises(ValueError, match="every: 0 is not at least 1"):
        SaliencyMaps(every=0)
