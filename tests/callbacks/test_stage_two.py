from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from callbacks.sparse_training import stages
from lightning_modules.optim import Optimization


def trainer_with(*callbacks):
    return SimpleNamespace(callbacks=list(callbacks))


@pytest.mark.parametrize("mode", ["min", "max"])
def test_nobody_stops_or_chooses_before_the_final_density(mode):
    stopper, chooser = (
        EarlyStopping("val/x", mode=mode),
        ModelCheckpoint(monitor="val/x", mode=mode),
    )
    every = ModelCheckpoint(save_top_k=-1)
    trainer, sleep = trainer_with(stopper, chooser, every), stages.Sleep()
    stopper.wait_count, stopper.best_score = 5, torch.tensor(0.1)
    sleep.sleep(trainer, dense=True)
    assert chooser.save_top_k == 1
    sleep.sleep(trainer, dense=False)
    assert (stopper.wait_count, chooser.save_top_k, every.save_top_k) == (0, 0, -1)
    assert stopper.best_score == (torch.inf if mode == "min" else -torch.inf)
    sleep.wake(trainer)
    assert chooser.save_top_k == 1


def test_the_dense_schedule_ends_with_its_stage():
    way = Optimization(lr=1e-2, schedule="onecycle", warmup_epochs=1)
    assert stages.dense_optimisation(way, 60).epochs == 60
    assert stages.dense_optimisation(way, 0) is way
    other = Optimization(lr=1e-2, schedule="cosine", epochs=40)
    with pytest.raises(ValueError, match=r"optimization\.epochs: 40 is not dense_epochs 60"):
        stages.dense_optimisation(other, 60)


def test_the_sparse_schedule_is_the_modules_with_its_own_rates():
    way = Optimization(lr=1e-2, schedule="onecycle", weight_decay=0.3, warmup_epochs=1)
    found = stages.sparse_optimisation(way, stages.Recovery(), 20)
    assert (found.lr, found.schedule, found.weight_decay) == (5e-5, "cosine", 0.3)
    with pytest.raises(ValueError, match=r"warmup_epochs: 3 is not below sparse_epochs 2"):
        stages.sparse_optimisation(way, stages.Recovery(warmup_epochs=3), 2)
