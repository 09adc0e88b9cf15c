"""Optimizers and learning-rate schedules by name, exact after a resume."""

import difflib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import LRSchedulerConfigType
from timm.optim import create_optimizer_v2, list_optimizers
from torch import optim
from torch.optim.lr_scheduler import LambdaLR

from evaluation.metrics.registry import monitor_mode
from lightning_modules.freezing import ParamGroup, require
from lightning_modules.losses import Option

Curve = Callable[[float], float]  # epochs since the start -> fraction of the learning rate
ONECYCLE_START, ONECYCLE_END = 1 / 25, 1e-4 / 25  # defaults of torch's OneCycleLR
DEFAULT_RISE = 0.3  # of the training; default of torch's OneCycleLR
DEFAULT_STEP_SIZES = {"step": 0.3, "cyclic": 0.25}  # of the training; 90 of timm's 300 epochs
SHORTENED_WARMUP = 0.5  # of a training that is not longer than its warm-up
MIN_IMPROVEMENT = 1e-4  # relative, as in torch's ReduceLROnPlateau
TORCH_DEFAULTS: dict[str, dict[str, Option]] = {  # where timm's factory differs from torch
    "sgd": {"nesterov": False},
    "rmsprop": {"alpha": 0.99, "momentum": 0.0},
}


@dataclass(frozen=True)
class OptimizerConfig:
    """An optimizer by name; norms and biases have no weight decay.

    Args:
        name: adam, adamw, sgd, rmsprop or any other optimizer of timm (lion, lamb, ...).
        lr: peak learning rate; 0 leaves the weights as they are.
        weight_decay: decoupled from the gradient in `adamw`, an L2 penalty in `adam`, `sgd` and
            `rmsprop`.
        momentum: of `sgd`.
        args: further arguments of the optimizer, for instance {betas: [0.9, 0.98]}.
    """

    name: str = "adamw"
    lr: float = 1e-3
    weight_decay: float = 0.0
    momentum: float = 0.9
    args: dict[str, Option] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.name not in list_optimizers():
            nearest = ", ".join(difflib.get_close_matches(self.name, list_optimizers(), 3, 0))
            raise ValueError(f"optimizer.name: unknown {self.name!r}; the nearest are: {nearest}")
        decay, momentum = self.weight_decay, self.momentum
        require("optimizer.lr", self.lr, self.lr >= 0, "at least 0")
        require("optimizer.weight_decay", decay, decay >= 0, "at least 0")
        require("optimizer.momentum", momentum, 0 <= momentum < 1, "from 0 to below 1")

    def create(self, param_groups: list[ParamGroup]) -> optim.Optimizer:
        """The optimizer of parameter groups, which have their own rates and weight decays."""
        momentum: dict[str, Option] = {"momentum": self.momentum} if self.name == "sgd" else {}
        options = TORCH_DEFAULTS.get(self.name, {}) | momentum | self.args
        try:
            optimizer: optim.Optimizer = create_optimizer_v2(
                param_groups, opt=self.name, lr=self.lr, weight_decay=0.0, **options
            )
        except TypeError as error:
            raise ValueError(f"optimizer.args: {self.name} refuses {options}: {error}") from error
        return optimizer


@dataclass(frozen=True)
class LRSchedulerConfig:
    """The course of the learning rate, which changes at every optimizer step.

    Args:
        name: none (constant), cosine, onecycle, step, cyclic or plateau.
        warmup_epochs: length of the linear rise from 0; in `onecycle`, of its rising part. Half of
            a training that is not longer than that. null is 30 % of the training for `onecycle`,
            as in torch, and 0 for the others.
        step_size: epochs per stair of `step`, or per half cycle of `cyclic`. null is 30 % of the
            training for `step`, as in timm, and 25 % for `cyclic`, which then ends at its lowest
            rate.
        gamma: factor at each stair of `step` and at each reduction of `plateau`.
        min_lr_ratio: lowest learning rate of `cosine`, `cyclic` and `plateau` as a fraction of lr.
        patience: validations without improvement before `plateau` reduces the rate.
        monitor: metric that `plateau` follows.
        epochs: length of the training that the schedule is made for; null uses the trainer's.
    """

    name: Literal["none", "cosine", "onecycle", "step", "cyclic", "plateau"] = "none"
    warmup_epochs: float | None = None
    step_size: int | None = None
    gamma: float = 0.1
    min_lr_ratio: float = 0.0
    patience: int = 10
    monitor: str = "val/loss"
    epochs: int | None = None

    def __post_init__(self) -> None:
        warmup, size, ratio = self.warmup_epochs, self.step_size, self.min_lr_ratio
        require("lr_scheduler.warmup_epochs", warmup, (warmup or 0.0) >= 0, "at least 0")
        require("lr_scheduler.step_size", size, size is None or size >= 1, "at least 1")
        require("lr_scheduler.gamma", self.gamma, 0 < self.gamma < 1, "between 0 and 1")
        require("lr_scheduler.min_lr_ratio", ratio, 0 <= ratio <= 1, "from 0 to 1")
        require("lr_scheduler.patience", self.patience, self.patience >= 1, "at least 1")

    def curve(self, epochs: float) -> Curve:
        """Function from epochs since the start to a fraction of the peak rate; 1 for `plateau`."""
        warmup, lowest = self._warmup(epochs), self.min_lr_ratio
        size = self.step_size or epochs * DEFAULT_STEP_SIZES.get(self.name, 1.0)
        is_onecycle = self.name == "onecycle"
        end = ONECYCLE_END if is_onecycle else lowest

        def cosine(t: float) -> float:
            return _half_cosine(1.0, end, (t - warmup) / (epochs - warmup))

        curves: dict[str, Curve] = {
            "cosine": cosine,
            "onecycle": cosine,
            "step": lambda t: self.gamma ** math.floor(t / size),
            "cyclic": lambda t: lowest + (1 - lowest) * abs((t / size + 1) % 2 - 1),  # from lowest
        }
        after_warmup: Curve = curves.get(self.name, lambda t: 1.0)

        def with_warmup(t: float) -> float:
            if t >= warmup:
                return after_warmup(t)
            if is_onecycle:
                return _half_cosine(ONECYCLE_START, 1.0, t / warmup)
            return t / warmup * after_warmup(t)

        return with_warmup

    def _warmup(self, epochs: float) -> float:
        """Epochs of warm-up in a training of `epochs` epochs."""
        if self.warmup_epochs is None:
            return DEFAULT_RISE * epochs if self.name == "onecycle" else 0.0
        is_too_long = 0 < epochs <= self.warmup_epochs
        return epochs * SHORTENED_WARMUP if is_too_long else self.warmup_epochs

    def step_plateau(self, trainer: Trainer, metrics: Mapping[str, float]) -> None:
        """Gives the metrics of a validation to a plateau schedule, before checkpoints are written.

        Lightning steps plateau schedules afterwards, and not at all after a resume.
        """
        if self.name != "plateau" or trainer.sanity_checking:
            return
        if self.monitor not in metrics:
            known = ", ".join(sorted(metrics))
            raise ValueError(f"lr_scheduler.monitor: no {self.monitor!r} among {known}")
        for scheduler in closed_form_schedulers(trainer):
            scheduler.step_plateau(metrics[self.monitor], self)

    def create(self, optimizer: optim.Optimizer, trainer: Trainer) -> LRSchedulerConfigType:
        """The schedule of an optimizer, as Lightning's `configure_optimizers` returns it."""
        curve = self.curve(self.total_epochs(trainer))
        scheduler = ClosedFormLR(optimizer, curve, steps_per_epoch(trainer))
        return {"scheduler": scheduler, "interval": "step", "name": "lr"}

    def total_epochs(self, trainer: Trainer) -> float:
        """Length of the schedule in epochs; infinite for schedules without an end."""
        has_step_size = self.name in DEFAULT_STEP_SIZES and self.step_size is not None
        if has_step_size or self.name in ("none", "plateau"):
            return math.inf
        steps, warmup = trainer.estimated_stepping_batches, self.warmup_epochs or 0.0
        epochs = float(self.epochs or steps / steps_per_epoch(trainer))
        if epochs == math.inf:
            needed = "an end: set trainer.max_epochs, or lr_scheduler.epochs"
            raise ValueError(f"lr_scheduler.name: {self.name} needs {needed}")
        if warmup >= epochs:
            change = f"is shortened to {epochs * SHORTENED_WARMUP:g}"
            rank_zero_warn(f"warmup_epochs {warmup:g} {change}: the training has {epochs:g} epochs")
        return epochs


class ClosedFormLR(LambdaLR):
    """Learning rates as a function of the step count, times the reductions of a plateau."""

    def __init__(self, optimizer: optim.Optimizer, curve: Curve, steps_per_epoch: int) -> None:
        self.reset_plateau()
        super().__init__(optimizer, lambda step: curve(step / steps_per_epoch) * self.plateau_ratio)

    def reset_plateau(self) -> None:
        """Forgets all validations; the next rates are those of the curve."""
        self.plateau_ratio, self.best, self.num_bad_validations = 1.0, math.inf, 0

    def step_plateau(self, value: float, config: LRSchedulerConfig) -> None:
        """Reduces the rates if `value` of `config.monitor` has not improved for long enough."""
        value = -value if monitor_mode(config.monitor) == "max" else value
        if self.best == math.inf or value < self.best - MIN_IMPROVEMENT * abs(self.best):
            self.best, self.num_bad_validations = value, 0
            return
        self.num_bad_validations += 1
        if self.num_bad_validations > config.patience:
            self.plateau_ratio = max(self.plateau_ratio * config.gamma, config.min_lr_ratio)
            self.num_bad_validations = 0
            self.update_rates()

    def update_rates(self) -> None:
        """Recomputes the rates of the current step, after the curve or the ratio has changed."""
        ratios = [ratio(self.last_epoch) for ratio in self.lr_lambdas]
        self._last_lr = [base * r for base, r in zip(self.base_lrs, ratios, strict=True)]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def closed_form_schedulers(trainer: Trainer) -> list[ClosedFormLR]:
    """The trainer's schedulers; ValueError if one is not a ClosedFormLR."""
    schedulers = []
    for config in trainer.lr_scheduler_configs:
        if not isinstance(config.scheduler, ClosedFormLR):
            kind = type(config.scheduler).__name__
            raise ValueError(f"lr_scheduler: {kind} is not a function of the step")
        schedulers.append(config.scheduler)
    return schedulers


def steps_per_epoch(trainer: Trainer) -> int:
    """Optimizer steps of one epoch."""
    trainer.fit_loop.setup_data()  # the length of the loaders is unknown before
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def _half_cosine(start: float, end: float, progress: float) -> float:
    """Half a cosine from `start` (at progress 0) to `end` (at 1), constant before and after."""
    return end + (start - end) * (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2
