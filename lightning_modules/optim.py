"""Optimizers and learning-rate schedules by name, exact after a resume."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from lightning_modules.freezing import FineTuning

Curve = Callable[[float], float]  # epochs since the start -> share of the learning rate
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1e-4 / 25  # torch's own, as shares of the peak
BETTER_BY = 1e-4  # a plateau ends when the monitored value improves by this share of itself


@dataclass(frozen=True)
class Optimization:
    """Optimizer and schedule of one training; each schedule moves at every optimizer step.

    Norms and biases are never decayed.

    Args:
        optimizer: torch's, by name.
        lr: the largest learning rate.
        weight_decay: of ``adamw`` apart from the gradient, of the others within it.
        momentum: of ``sgd``.
        schedule: the course of the learning rate; ``none`` is level.
        warmup_epochs: the linear rise from 0 of every schedule (of ``onecycle``: its rising part).
        every: in epochs, the length of a stair of ``step`` or half a wave of ``cyclic``; the
            patience of ``plateau``, in validations.
        factor: what ``step`` and ``plateau`` multiply by.
        floor: the lowest share of ``lr`` (of ``cosine``, ``cyclic``, ``plateau``).
        monitor: figure that ``plateau`` goes by; one that ends in "loss" is better when smaller.
        epochs: the length of ``cosine`` and ``onecycle``; null is the trainer's ``max_epochs``.
    """

    optimizer: Literal["adam", "adamw", "sgd", "rmsprop"] = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    schedule: Literal["none", "cosine", "onecycle", "step", "cyclic", "plateau"] = "none"
    warmup_epochs: float = 0.0
    every: int = 10
    factor: float = 0.1
    floor: float = 0.0
    monitor: str = "val/loss"
    epochs: int | None = None

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        for name, value, good, allowed in (
            ("lr", self.lr, self.lr > 0, "above 0"),
            ("weight_decay", self.weight_decay, self.weight_decay >= 0, "at least 0"),
            ("warmup_epochs", self.warmup_epochs, self.warmup_epochs >= 0, "at least 0"),
            ("every", self.every, self.every >= 1, "at least 1"),
            ("factor", self.factor, 0 < self.factor < 1, "between 0 and 1"),
            ("floor", self.floor, 0 <= self.floor <= 1, "from 0 to 1"),
        ):
            if not good:
                raise ValueError(f"optimization.{name}: {value} is not {allowed}")

    def configure(
        self, net: nn.Module, trainer: Trainer, tuning: FineTuning | None = None
    ) -> OptimizerLRSchedulerConfig:
        """What Lightning's ``configure_optimizers`` returns for ``net``."""
        groups = (tuning or FineTuning()).groups(net, self.lr, self.weight_decay)
        optimizer = self._optimizer(groups)
        schedule = Schedule(optimizer, self.curve(self._length(trainer)), _steps_an_epoch(trainer))
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "name": "lr"},
        }

    def curve(self, epochs: float) -> Curve:
        """Share of the learning rate at each moment of a training of ``epochs``, plateau apart."""
        shapes: dict[str, Curve] = {
            "none": _level,
            "plateau": _level,
            "cosine": lambda t: self._cosine(t, epochs),
            "onecycle": lambda t: self._onecycle(t, epochs),
            "step": lambda t: self.factor ** math.floor(t / self.every),
            "cyclic": self._cyclic,
        }
        shape = shapes[self.schedule]
        return shape if self.schedule == "onecycle" else lambda t: self._warmup(t) * shape(t)

    def observe(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Tell a plateau schedule what a validation gave.

        The module calls this before checkpoints are written: Lightning itself would step plateau
        schedules afterwards, and after a resume not at all.
        """
        if self.schedule != "plateau" or trainer.sanity_checking:
            return
        if self.monitor not in metrics:
            raise ValueError(
                f"optimization.monitor: no {self.monitor!r} among {', '.join(sorted(metrics))}"
            )
        sign = 1.0 if self.monitor.endswith("loss") else -1.0
        for config in trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, Schedule):
                config.scheduler.observe(sign * metrics[self.monitor], self)

    def _optimizer(self, groups: list[dict[str, object]]) -> optim.Optimizer:
        if self.optimizer == "sgd":
            return optim.SGD(groups, self.lr, momentum=self.momentum)
        if self.optimizer == "rmsprop":
            return optim.RMSprop(groups, self.lr)
        return (optim.Adam if self.optimizer == "adam" else optim.AdamW)(groups, self.lr)

    def _length(self, trainer: Trainer) -> float:
        if self.schedule not in ("cosine", "onecycle"):
            return math.inf
        steps = trainer.estimated_stepping_batches
        epochs = float(self.epochs or steps / _steps_an_epoch(trainer))
        if not self.warmup_epochs < epochs < math.inf:
            raise ValueError(
                f"optimization.schedule: {self.schedule} needs a training longer than its "
                f"warmup_epochs {self.warmup_epochs} and with an end, not {epochs} epochs"
            )
        return epochs

    def _warmup(self, t: float) -> float:
        return min(1.0, t / self.warmup_epochs) if self.warmup_epochs else 1.0

    def _cosine(self, t: float, epochs: float) -> float:
        done = (t - self.warmup_epochs) / (epochs - self.warmup_epochs)
        return _ease(1.0, self.floor, done)

    def _onecycle(self, t: float, epochs: float) -> float:
        if t < self.warmup_epochs:
            return _ease(ONECYCLE_START, 1.0, t / self.warmup_epochs)
        done = (t - self.warmup_epochs) / (epochs - self.warmup_epochs)
        return _ease(1.0, ONECYCLE_END, done)

    def _cyclic(self, t: float) -> float:
        wave = abs((t / self.every + 1) % 2 - 1)  # 0 at the start, 1 after `every` epochs
        return self.floor + (1 - self.floor) * wave


class Schedule(LambdaLR):
    """Learning rates in closed form of the step count, times what a plateau has left of them.

    Everything that a resume needs is plain state of this object at any moment.
    """

    plateau_share: float
    best: float
    waited: int

    def __init__(self, optimizer: optim.Optimizer, curve: Curve, steps_an_epoch: int) -> None:
        self.restart()
        super().__init__(optimizer, lambda step: curve(step / steps_an_epoch) * self.plateau_share)

    def observe(self, value: float, settings: Optimization) -> None:
        """Count a validation whose value (smaller is better) may end or prolong a plateau."""
        if self.best == math.inf or value < self.best - BETTER_BY * abs(self.best):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited > settings.every:
            self.plateau_share = max(self.plateau_share * settings.factor, settings.floor)
            self.waited = 0
            self.rewrite()

    def restart(self) -> None:
        """Forget what validations gave; the next rates are those of the curve."""
        self.plateau_share, self.best, self.waited = 1.0, math.inf, 0

    def rewrite(self) -> None:
        """Give the optimizer the rates of this step anew: its curve or share is another."""
        shares = [share(self.last_epoch) for share in self.lr_lambdas]
        self._last_lr = [base * s for base, s in zip(self.base_lrs, shares, strict=True)]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def _level(t: float) -> float:
    """The whole rate at any time ``t``."""
    return 1.0


def _ease(start: float, end: float, done: float) -> float:
    """Half a cosine from ``start`` to ``end``, level before and after."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, max(0.0, done)))) / 2


def _steps_an_epoch(trainer: Trainer) -> int:
    trainer.fit_loop.setup_data()  # the loaders' length is not known before
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
