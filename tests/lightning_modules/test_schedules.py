"""Schedules against torch's own and closed forms, and exact after a resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Self

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    StepLR,
)
from torch.utils.data import DataLoader, TensorDataset

from lightning_modules import backbones
from lightning_modules.freezing import FineTuning, rest
from lightning_modules.optim import Optimization, Schedule

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")
STEPS = 5  # optimizer steps an epoch of the curves below


def rates(settings: Optimization, epochs: int) -> list[float]:
    curve = settings.curve(epochs)
    return [curve(step / STEPS) for step in range(epochs * STEPS)]


def torch_rates(make: Callable[[optim.Optimizer], LRScheduler], epochs: int) -> list[float]:
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler, found = make(optimizer), []
    for _ in range(epochs * STEPS):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_cosine_is_torchs() -> None:
    expected = torch_rates(lambda o: CosineAnnealingLR(o, 8 * STEPS, eta_min=0.2), 8)
    assert rates(Optimization(schedule="cosine", floor=0.2), 8) == pytest.approx(expected)


def test_onecycle_is_torchs() -> None:
    found = rates(Optimization(schedule="onecycle", warmup_epochs=2), 10)
    # torch counts steps, so that its peak and its end stand at whole ones
    expected = torch_rates(
        lambda o: OneCycleLR(o, 1.0, total_steps=10 * STEPS + 1, pct_start=11 / (10 * STEPS + 1)),
        10,
    )
    assert found == pytest.approx(expected)


def test_stairs_are_torchs() -> None:
    expected = torch_rates(lambda o: StepLR(o, 3 * STEPS, gamma=0.5), 10)
    assert rates(Optimization(schedule="step", every=3, factor=0.5), 10) == pytest.approx(expected)


def test_waves_are_torchs() -> None:
    expected = torch_rates(lambda o: CyclicLR(o, 0.1, 1.0, step_size_up=2 * STEPS), 9)
    assert rates(Optimization(schedule="cyclic", every=2, floor=0.1), 9) == pytest.approx(expected)


def test_a_level_schedule_stays() -> None:
    assert rates(Optimization(), 4) == [1.0] * 4 * STEPS


@pytest.mark.parametrize("schedule", ["none", "cosine", "step", "cyclic", "plateau"])
def test_warm_up_is_a_straight_line_from_zero(schedule: str) -> None:
    settings = Optimization(schedule=schedule, warmup_epochs=2, every=100)
    shape = Optimization(schedule=schedule, every=100).curve(20)
    warm = settings.curve(20)
    assert warm(0) == 0
    if schedule == "cosine":
        assert warm(1) == 0.5
        assert warm(2) == 1
    else:
        assert warm(1) == shape(1) / 2
        assert warm(2) == shape(2)


def test_plateaus_are_torchs() -> None:
    torch.manual_seed(0)
    losses = (torch.rand(60) + torch.linspace(1, 0.5, 60)).tolist()
    theirs = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    ours = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    settings = Optimization(schedule="plateau", every=2, factor=0.5, floor=0.01)
    reference = ReduceLROnPlateau(theirs, factor=0.5, patience=2, min_lr=0.01)
    schedule = Schedule(ours, settings.curve(60), 1)
    for loss in losses:
        reference.step(loss)
        schedule.observe(loss, settings)
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        ours.step()
        schedule.step()
    assert ours.param_groups[0]["lr"] < 0.1


def test_plateau_keeps_the_ratio_of_its_groups() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    settings = Optimization(schedule="plateau", every=1, factor=0.5)
    optimizer = optim.SGD(groups, lr=1.0)
    schedule = Schedule(optimizer, settings.curve(9), 1)
    for _ in range(3):
        schedule.observe(1.0, settings)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


class Learner(lightning.LightningModule):
    """As little of a classifier as the schedules need; each epoch's val loss is told in advance."""

    def __init__(self, settings: Optimization, tuning: FineTuning) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = backbones.build("test_resnet", 2)
        self.settings, self.tuning = settings, tuning

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> None:
        """Only has to exist, for Lightning to validate at all."""

    def on_validation_epoch_end(self) -> None:
        told = [1.0, 1.1, 1.2, 1.3][self.current_epoch]
        self.settings.observe(self.trainer, {"val/loss": told, "val/accuracy": -told})

    def on_train_epoch_start(self) -> None:
        self.tuning.apply(self.net, self.current_epoch)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        rest(self.net)
        return self

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return self.settings.configure(self.net, self.trainer, self.tuning)


class StopAfter(Callback):
    """Ends a training after an epoch, as a kill would, with what was saved until then."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: object) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def fit(folder: Path, learner: Learner, *, stop: int = 4, resume: str | None = None) -> list[float]:
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.arange(12) % 2)
    seen: list[float] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
            seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    keep = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[keep, StopAfter(stop), Watch()],
    )
    train = DataLoader(data, batch_size=4)
    trainer.fit(learner, train, DataLoader(data, batch_size=12), ckpt_path=resume)
    return seen


SCHEDULES = [
    Optimization(),
    Optimization(schedule="cosine", warmup_epochs=0.5, optimizer="adam"),
    Optimization(schedule="onecycle", warmup_epochs=1, weight_decay=0.1),
    Optimization(schedule="step", every=1, factor=0.5, optimizer="rmsprop"),
    Optimization(schedule="cyclic", every=1, floor=0.1, optimizer="sgd"),
    Optimization(schedule="plateau", every=1, factor=0.5),
    Optimization(schedule="plateau", every=1, factor=0.5, monitor="val/accuracy"),
]
TUNINGS = [FineTuning(), FineTuning(frozen_stages=2, thaw_epochs=[1, 3])]


@pytest.mark.parametrize("tuning", TUNINGS, ids=["all", "thawing"])
@pytest.mark.parametrize("settings", SCHEDULES, ids=lambda s: s.schedule)
def test_two_and_two_epochs_are_four(
    tmp_path: Path, settings: Optimization, tuning: FineTuning
) -> None:
    whole, part = Learner(settings, tuning), Learner(settings, tuning)
    straight = fit(tmp_path / "whole", whole)
    before = fit(tmp_path / "part", part, stop=2)
    part = Learner(settings, tuning)
    after = fit(tmp_path / "part", part, resume=str(tmp_path / "part/epoch=1.ckpt"))
    assert straight == before + after
    ours, theirs = whole.state_dict(), part.state_dict()
    assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_a_plateau_falls_at_the_validation_that_ends_it(tmp_path: Path) -> None:
    settings = Optimization(lr=1.0, schedule="plateau", every=1, factor=0.5, optimizer="sgd")
    seen = fit(tmp_path, Learner(settings, FineTuning()))
    assert seen == [1.0] * 9 + [0.5] * 3


def test_unknown_monitor_names_those_there_are(tmp_path: Path) -> None:
    settings = Optimization(schedule="plateau", monitor="val/los")
    with pytest.raises(ValueError, match=r"monitor: no 'val/los' among val/accuracy, val/loss"):
        fit(tmp_path, Learner(settings, FineTuning()))


def test_cosine_longer_than_its_warm_up(tmp_path: Path) -> None:
    settings = Optimization(schedule="cosine", warmup_epochs=4)
    with pytest.raises(ValueError, match=r"warmup_epochs 4 .* not 4\.0 epochs"):
        fit(tmp_path, Learner(settings, FineTuning()))


@pytest.mark.parametrize(
    ("name", "value"),
    [("lr", 0.0), ("weight_decay", -1.0), ("every", 0), ("factor", 1.0), ("floor", 2.0)],
)
def test_settings_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"optimization\.{name}: {value} is not"):
        Optimization(**{name: value})
