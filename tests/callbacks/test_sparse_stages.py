from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from callbacks import TwoStageSparseTraining
from callbacks.sparse_training import stages
from lightning_modules.optim import LRSchedulerConfig


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_epoch_and_early_stopping_wait_for_the_final_density(mode):
    stopping = EarlyStopping("val/x", mode=mode)
    best = ModelCheckpoint(monitor="val/x", mode=mode)
    every_epoch = ModelCheckpoint(save_top_k=-1)
    trainer = SimpleNamespace(early_stopping_callbacks=[stopping],
                              checkpoint_callbacks=[best, every_epoch])  # fmt: skip
    pause = stages.SelectionPause()
    stopping.wait_count, stopping.best_score = 5, torch.tensor(0.1)
    pause.pause(trainer, is_dense_stage=True)
    assert best.save_top_k == 1
    pause.pause(trainer, is_dense_stage=False)
    assert (stopping.wait_count, best.save_top_k, every_epoch.save_top_k) == (0, 0, -1)
    assert stopping.best_score == (torch.inf if mode == "min" else -torch.inf)
    pause.resume(trainer)
    assert best.save_top_k == 1


def test_the_dense_schedule_ends_with_its_stage():
    config = LRSchedulerConfig("onecycle", warmup_epochs=1)
    assert stages.dense_schedule(config, 60).epochs == 60
    assert stages.dense_schedule(config, 0) is config
    shorter = LRSchedulerConfig("cosine", epochs=40)
    with pytest.raises(ValueError, match=r"lr_scheduler\.epochs: 40 is not dense_epochs 60"):
        stages.dense_schedule(shorter, 60)


def test_the_sparse_schedule_is_the_models_with_the_settings_of_recovery():
    config = LRSchedulerConfig("onecycle", warmup_epochs=3, min_lr_ratio=0.2)
    sparse = stages.sparse_schedule(config, stages.Recovery(), 20)
    assert (sparse.name, sparse.warmup_epochs, sparse.epochs) == ("cosine", 1, 20)
    assert sparse.min_lr_ratio == 0.2
    with pytest.raises(ValueError, match=r"warmup_epochs: 3 is not below sparse_epochs 2"):
        stages.sparse_schedule(config, stages.Recovery(warmup_epochs=3), 2)


def test_a_module_without_optimizer_settings_is_refused():
    trainer = L.Trainer(accelerator="cpu", devices=1, max_epochs=3, logger=False)
    with pytest.raises(ValueError, match="LightningModule has no `optimizer` and `lr_scheduler`"):
        TwoStageSparseTraining(0.25, 1, 2).setup(trainer, L.LightningModule(), "fit")


@pytest.mark.parametrize(("values", "message"), [
    ({"ramp_fraction": 1.0}, r"density_schedule\.ramp_fraction: 1\.0 is not from 0 to below 1"),
    ({"regrow_fraction": -1}, r"density_schedule\.regrow_fraction: -1 is not from 0"),
    ({"num_updates": 0}, r"density_schedule\.num_updates: 0 is not at least 1"),
])  # fmt: skip
def test_density_schedules_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        stages.DensitySchedule(**values)
