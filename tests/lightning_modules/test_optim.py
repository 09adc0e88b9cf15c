"""Optimizers and schedules against torch's own and closed forms, and exact after a resume."""

import math
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
from lightning_modules.freezing import FineTuning
from lightning_modules.optim import (
    ClosedFormLR,
    LRSchedulerConfig,
    OptimizerConfig,
)

pytestmark = pytest.mark.filterwarnings("ignore:Checkpoint directory")
STEPS = 5  # optimizer steps per epoch of the curves below


def rates(config: LRSchedulerConfig, epochs: int) -> list[float]:
    curve = config.curve(epochs)
    return [curve(step / STEPS) for step in range(epochs * STEPS)]


def torch_rates(create: Callable[[optim.Optimizer], LRScheduler], epochs: int) -> list[float]:
    optimizer = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0, momentum=0.9)
    scheduler, used = create(optimizer), []
    for _ in range(epochs * STEPS):
        used.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return used


def test_cosine_equals_torch() -> None:
    expected = torch_rates(lambda o: CosineAnnealingLR(o, 8 * STEPS, eta_min=0.2), 8)
    assert rates(LRSchedulerConfig("cosine", min_lr_ratio=0.2), 8) == pytest.approx(expected)


def test_onecycle_equals_torch() -> None:
    config = LRSchedulerConfig("onecycle", warmup_epochs=2)
    # torch counts steps, so its peak and end are at whole steps
    total = 10 * STEPS + 1
    expected = torch_rates(
        lambda o: OneCycleLR(o, 1.0, total_steps=total, pct_start=11 / total), 10
    )
    assert rates(config, 10) == pytest.approx(expected)


def test_step_equals_torch() -> None:
    expected = torch_rates(lambda o: StepLR(o, 3 * STEPS, gamma=0.5), 10)
    assert rates(LRSchedulerConfig("step", step_size=3, gamma=0.5), 10) == pytest.approx(expected)


def test_cyclic_equals_torch() -> None:
    expected = torch_rates(lambda o: CyclicLR(o, 0.1, 1.0, step_size_up=2 * STEPS), 9)
    config = LRSchedulerConfig("cyclic", step_size=2, min_lr_ratio=0.1)
    assert rates(config, 9) == pytest.approx(expected)


def test_onecycle_without_a_warmup_rises_for_30_percent_as_in_torch() -> None:
    used = rates(LRSchedulerConfig("onecycle"), 10)
    expected = torch_rates(lambda o: OneCycleLR(o, 1.0, total_steps=10 * STEPS), 10)
    assert used[0] == expected[0] == pytest.approx(1 / 25)
    assert used.index(1.0) == 3 * STEPS == expected.index(1.0) + 1  # torch counts from 1
    assert used == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize("epochs", [1, 7, 300])
def test_steps_without_a_size_are_30_percent_as_in_timm(epochs: int) -> None:
    curve = LRSchedulerConfig("step").curve(epochs)
    used = [curve(epochs * fraction) for fraction in (0.0, 0.29, 0.31, 0.59, 0.61, 0.91)]
    assert used == pytest.approx([1.0, 1.0, 0.1, 0.1, 0.01, 0.001])


@pytest.mark.parametrize("epochs", [4, 10])
def test_cycles_without_a_size_end_at_their_lowest_rate(epochs: int) -> None:
    curve = LRSchedulerConfig("cyclic", min_lr_ratio=0.1).curve(epochs)
    used = [curve(epochs * fraction) for fraction in (0.0, 0.25, 0.5, 0.75, 1.0)]
    assert used == pytest.approx([0.1, 1.0, 0.1, 1.0, 0.1])


def test_none_is_constant() -> None:
    assert rates(LRSchedulerConfig(), 4) == [1.0] * 4 * STEPS


@pytest.mark.parametrize("name", ["none", "cosine", "step", "cyclic", "plateau"])
def test_warmup_rises_linearly_from_zero(name: str) -> None:
    with_warmup = LRSchedulerConfig(name, warmup_epochs=2, step_size=100).curve(20)
    without = LRSchedulerConfig(name, step_size=100).curve(20)
    assert with_warmup(0) == 0
    if name == "cosine":
        assert with_warmup(1) == 0.5
        assert with_warmup(2) == 1
    else:
        assert with_warmup(1) == without(1) / 2
        assert with_warmup(2) == without(2)


def test_plateau_equals_torch() -> None:
    torch.manual_seed(0)
    losses = (torch.rand(60) + torch.linspace(1, 0.5, 60)).tolist()
    theirs = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    ours = optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    config = LRSchedulerConfig("plateau", patience=2, gamma=0.5, min_lr_ratio=0.01)
    reference = ReduceLROnPlateau(theirs, factor=0.5, patience=2, min_lr=0.01)
    scheduler = ClosedFormLR(ours, config.curve(60), 1)
    for loss in losses:
        reference.step(loss)
        scheduler.step_plateau(loss, config)
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        ours.step()
        scheduler.step()
    assert ours.param_groups[0]["lr"] < 0.1


def test_plateau_preserves_the_ratio_of_parameter_groups() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.1)]
    config = LRSchedulerConfig("plateau", patience=1, gamma=0.5)
    optimizer = optim.SGD(groups, lr=1.0)
    scheduler = ClosedFormLR(optimizer, config.curve(9), 1)
    for _ in range(3):
        scheduler.step_plateau(1.0, config)
    assert [group["lr"] for group in optimizer.param_groups] == [0.5, 0.05]


@pytest.mark.parametrize(
    ("name", "torch_class", "options"),
    [
        ("adam", optim.Adam, {}),
        ("adamw", optim.AdamW, {}),
        ("sgd", optim.SGD, {"momentum": 0.9}),
        ("rmsprop", optim.RMSprop, {}),
    ],
)
def test_optimizers_have_the_defaults_of_torch(
    name: str, torch_class: type[optim.Optimizer], options: dict[str, float]
) -> None:
    group = {"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1, "weight_decay": 0.3}
    ours = OptimizerConfig(name, lr=0.1).create([dict(group)])
    theirs = torch_class([dict(group)], lr=0.1, **options)
    assert type(ours) is torch_class
    ours_group, theirs_group = ours.param_groups[0], theirs.param_groups[0]
    assert {k: v for k, v in ours_group.items() if k != "params"} == {
        k: v for k, v in theirs_group.items() if k != "params"
    }


def test_other_optimizers_of_timm_and_further_arguments() -> None:
    groups = [{"params": [nn.Parameter(torch.zeros(2))], "lr": 0.1, "weight_decay": 0.0}]
    optimizer = OptimizerConfig("lion", args={"betas": [0.8, 0.9]}).create(groups)
    assert type(optimizer).__name__ == "Lion"
    assert list(optimizer.defaults["betas"]) == [0.8, 0.9]
    with pytest.raises(ValueError, match=r"optimizer\.args: adamw refuses .*beta"):
        OptimizerConfig("adamw", args={"beta": 0.9}).create(groups)


class Learner(lightning.LightningModule):
    """A minimal classifier with a schedule; the val loss of each epoch is given."""

    def __init__(
        self, config: LRSchedulerConfig, fine_tuning: FineTuning, optimizer: OptimizerConfig
    ) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = backbones.build("test_resnet", 2)
        self.config, self.fine_tuning, self.optimizer = config, fine_tuning, optimizer

    def training_step(self, batch: list[Tensor]) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: list[Tensor]) -> None:
        """Needed for Lightning to validate at all."""

    def on_validation_epoch_end(self) -> None:
        loss = [1.0, 1.1, 1.2, 1.3][self.current_epoch]
        self.config.step_plateau(self.trainer, {"val/loss": loss, "val/accuracy": -loss})

    def on_train_epoch_start(self) -> None:
        self.fine_tuning.apply(self.net, self.current_epoch)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.fine_tuning.set_frozen_layers_to_eval(self.net)
        return self

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        lr, weight_decay = self.optimizer.lr, self.optimizer.weight_decay
        optimizer = self.optimizer.create(self.fine_tuning.param_groups(self.net, lr, weight_decay))
        scheduler = self.config.create(optimizer, self.trainer)
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class StopAfter(Callback):
    """Ends a training after some epochs, with what was saved until then."""

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: lightning.Trainer, _: object) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def fit(folder: Path, learner: Learner, *, stop: int = 4, resume: str | None = None) -> list[float]:
    """The learning rate at each step."""
    images = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    data = TensorDataset(images, torch.arange(12) % 2)
    used: list[float] = []

    class RecordRate(Callback):
        def on_train_batch_start(self, trainer: lightning.Trainer, *_: object) -> None:
            used.append(trainer.optimizers[0].param_groups[0]["lr"])

    saved = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer = lightning.Trainer(
        max_epochs=4,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[saved, StopAfter(stop), RecordRate()],
    )
    train = DataLoader(data, batch_size=4)
    trainer.fit(learner, train, DataLoader(data, batch_size=12), ckpt_path=resume)
    return used


CASES = {
    "none": (LRSchedulerConfig(), OptimizerConfig()),
    "cosine": (LRSchedulerConfig("cosine", warmup_epochs=0.5), OptimizerConfig("adam")),
    "onecycle": (
        LRSchedulerConfig("onecycle", warmup_epochs=1),
        OptimizerConfig(weight_decay=0.1),
    ),
    "step": (LRSchedulerConfig("step", step_size=1, gamma=0.5), OptimizerConfig("rmsprop")),
    "cyclic": (LRSchedulerConfig("cyclic", step_size=1, min_lr_ratio=0.1), OptimizerConfig("sgd")),
    "plateau": (LRSchedulerConfig("plateau", patience=1, gamma=0.5), OptimizerConfig()),
    "plateau of accuracy": (
        LRSchedulerConfig("plateau", patience=1, gamma=0.5, monitor="val/accuracy"),
        OptimizerConfig(),
    ),
}
FINE_TUNINGS = {
    "all": FineTuning(),
    "unfreezing": FineTuning(frozen_stages=2, unfreeze_epochs=[1, 3]),
}


@pytest.mark.parametrize("fine_tuning", FINE_TUNINGS)
@pytest.mark.parametrize("case", CASES)
def test_a_resumed_training_equals_an_uninterrupted_one(
    tmp_path: Path, case: str, fine_tuning: str
) -> None:
    def learner() -> Learner:
        scheduler, optimizer = CASES[case]
        return Learner(scheduler, FINE_TUNINGS[fine_tuning], optimizer)

    whole, resumed = learner(), learner()
    rates_whole = fit(tmp_path / "whole", whole)
    rates_before = fit(tmp_path / "part", learner(), stop=2)
    rates_after = fit(tmp_path / "part", resumed, resume=str(tmp_path / "part/epoch=1.ckpt"))
    assert rates_whole == rates_before + rates_after
    expected, state = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(expected[k], state[k]) for k in expected)


def test_a_plateau_reduces_the_rate_right_after_its_validation(tmp_path: Path) -> None:
    config = LRSchedulerConfig("plateau", patience=1, gamma=0.5)
    learner = Learner(config, FineTuning(), OptimizerConfig("sgd", lr=1.0))
    assert fit(tmp_path, learner) == [1.0] * 9 + [0.5] * 3


@pytest.mark.parametrize(("monitor", "rate"), [("val/nll", 1.0), ("val/auroc", 0.5)])
def test_the_monitored_metric_decides_what_a_plateau_is(monitor: str, rate: float) -> None:
    """Values fall: an improvement of NLL at each validation, and none of AUROC."""
    config = LRSchedulerConfig("plateau", patience=1, gamma=0.5, monitor=monitor)
    sgd = OptimizerConfig("sgd", lr=1.0).create([{"params": [torch.nn.Parameter(torch.ones(1))]}])
    scheduler = ClosedFormLR(sgd, config.curve(math.inf), 1)
    for value in (0.9, 0.8, 0.7):
        scheduler.step_plateau(value, config)
    assert scheduler.get_last_lr() == [rate]


def test_an_unknown_monitor_is_an_error_that_lists_the_metrics(tmp_path: Path) -> None:
    config = LRSchedulerConfig("plateau", monitor="val/los")
    with pytest.raises(ValueError, match=r"monitor: no 'val/los' among val/accuracy, val/loss"):
        fit(tmp_path, Learner(config, FineTuning(), OptimizerConfig()))


@pytest.mark.parametrize("name", ["cosine", "onecycle"])
def test_warmup_is_shortened_to_half_of_a_training_that_is_not_longer(name: str) -> None:
    for epochs in (1.0, 4.0):
        shortened = LRSchedulerConfig(name, warmup_epochs=4).curve(epochs)
        half = LRSchedulerConfig(name, warmup_epochs=epochs / 2).curve(epochs)
        moments = [epochs * k / 8 for k in range(9)]
        assert [shortened(t) for t in moments] == [half(t) for t in moments]
        assert shortened(epochs / 2) == 1.0


def test_shortened_warmup_is_a_warning(tmp_path: Path) -> None:
    config = LRSchedulerConfig("cosine", warmup_epochs=4)
    with pytest.warns(UserWarning, match=r"warmup_epochs 4 is shortened to 2: the training has 4"):
        fit(tmp_path, Learner(config, FineTuning(), OptimizerConfig()))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("warmup_epochs", -1.0),
        ("step_size", 0),
        ("gamma", 1.0),
        ("min_lr_ratio", 2.0),
        ("patience", 0),
    ],
)
def test_scheduler_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"lr_scheduler\.{name}: {value} is not"):
        LRSchedulerConfig(**{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("lr", -0.1), ("weight_decay", -1.0), ("momentum", 1.0)]
)
def test_optimizer_values_out_of_range_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"optimizer\.{name}: {value} is not"):
        OptimizerConfig(**{name: value})


def test_an_unknown_optimizer_is_an_error_that_lists_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"optimizer\.name: unknown 'adamm'; the nearest .*adam"):
        OptimizerConfig("adamm")
