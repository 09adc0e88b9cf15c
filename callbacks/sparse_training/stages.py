"""The change from the dense to the sparse stage: density, learning rates, choice of the best."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from callbacks.ema import find_callbacks
from callbacks.warm_start import read_weights
from lightning_modules.optim import (
    ClosedFormLR,
    Curve,
    LRSchedulerConfig,
    OptimizerConfig,
    steps_per_epoch,
)

DENSE_CHECKPOINT = "dense.ckpt"


@dataclass(frozen=True)
class DensitySchedule:
    """When the density falls during the sparse stage: cubically over its first part.

    Args:
        ramp_fraction: fraction of the sparse stage over which the density falls; 0 prunes once,
            before its first step.
        num_updates: number of mask updates in that time.
        regrow_fraction: fraction of the remaining values that each update but the last exchanges
            for the pruned ones with the largest gradients; it falls to 0 like a cosine.
    """

    ramp_fraction: float = 0.5
    num_updates: int = 20
    regrow_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Refuses values outside their range."""
        for name in ("ramp_fraction", "regrow_fraction"):
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"density_schedule.{name}: {value} is not from 0 to below 1")
        if self.num_updates < 1:
            raise ValueError(f"density_schedule.num_updates: {self.num_updates} is not at least 1")

    def updates_before(self, step: int, num_steps: int) -> int:
        """Number of mask updates before step `step` (from 0) of a stage of `num_steps` steps."""
        length, total = int(self.ramp_fraction * num_steps), self.total_updates(num_steps)
        return sum(i * length // total <= step for i in range(1, total + 1))

    def total_updates(self, num_steps: int) -> int:
        """Number of mask updates in a stage of `num_steps` steps."""
        return max(1, min(self.num_updates, int(self.ramp_fraction * num_steps)))

    def remaining(self, updates: int, num_steps: int) -> float:
        """Fraction of the pruning that is still to be done after so many updates."""
        return float((1 - updates / self.total_updates(num_steps)) ** 3)

    def regrow(self, updates: int, num_steps: int) -> float:
        """Fraction of the remaining values that are exchanged after so many updates."""
        progress = math.pi * updates / self.total_updates(num_steps)
        return self.regrow_fraction * (1 + math.cos(progress)) / 2


@dataclass(frozen=True)
class Recovery:
    """Learning rates of the sparse stage, counted from its start.

    Other settings of the schedule are those of the model's `lr_scheduler`.

    Args:
        lr: peak learning rate.
        lr_scheduler: name of the schedule; `none` is constant.
        warmup_epochs: length of the linear rise from 0.
    """

    lr: float = 5e-5
    lr_scheduler: Literal["none", "cosine", "onecycle", "step", "cyclic", "plateau"] = "cosine"
    warmup_epochs: float = 1.0


@runtime_checkable
class ScheduledModule(Protocol):
    """A LightningModule with Consilium's optimizer and schedule, such as ImageClassifier."""

    optimizer: OptimizerConfig
    lr_scheduler: LRSchedulerConfig


def require_scheduled(module: L.LightningModule) -> ScheduledModule:
    """The module, if its learning rates are of a kind that can be changed for a stage."""
    if not isinstance(module, ScheduledModule):
        raise ValueError(
            f"{type(module).__name__} has no `optimizer` and `lr_scheduler` settings, which "
            "callbacks.TwoStageSparseTraining needs; use lightning_modules.ImageClassifier"
        )
    return module


def require_settings(saved: dict[str, Any], current: dict[str, Any]) -> None:
    """Refuses to resume with other settings than those of the checkpoint."""
    for name, value in current.items():
        if saved.get(name) != value:
            raise ValueError(f"{name}: {value} is not the {saved.get(name)} of the checkpoint")


def dense_schedule(config: LRSchedulerConfig, dense_epochs: int) -> LRSchedulerConfig:
    """The model's schedule, ending where the dense stage ends."""
    if dense_epochs and config.epochs not in (None, dense_epochs):
        raise ValueError(f"lr_scheduler.epochs: {config.epochs} is not dense_epochs {dense_epochs}")
    return replace(config, epochs=dense_epochs) if dense_epochs else config


def sparse_schedule(
    config: LRSchedulerConfig, recovery: Recovery, sparse_epochs: int
) -> LRSchedulerConfig:
    """The model's schedule with the settings of the sparse stage."""
    if recovery.warmup_epochs >= sparse_epochs:
        raise ValueError(f"recovery.warmup_epochs: {recovery.warmup_epochs} is not below "
                         f"sparse_epochs {sparse_epochs}")  # fmt: skip
    return replace(config, name=recovery.lr_scheduler, warmup_epochs=recovery.warmup_epochs,
                   epochs=sparse_epochs)  # fmt: skip


def join_schedules(trainer: L.Trainer, start: int, ratio: float, curve: Curve) -> None:
    """From optimizer step `start` on, learning rates follow `curve` (in epochs) times `ratio`.

    Rates remain a function of the step, so that a resume needs no further state.
    """
    steps = steps_per_epoch(trainer)
    for scheduler in _schedulers(trainer):
        scheduler.lr_lambdas = [
            _join(scheduler, before, start, lambda step: ratio * curve((step - start) / steps))
            for before in scheduler.lr_lambdas
        ]
        scheduler.update_rates()


def restart_schedules(trainer: L.Trainer) -> None:
    """Discards the reductions that a plateau made in the dense stage."""
    for scheduler in _schedulers(trainer):
        scheduler.reset_plateau()


def save_dense_checkpoint(trainer: L.Trainer, dense_epochs: int) -> Path:
    """Moves the best checkpoint of the dense stage to dense.ckpt, where a resume may find it.

    A fit that was killed in the sparse stage may have left a best.ckpt of that stage, which does
    not move.
    """
    dense = Path(trainer.default_root_dir) / DENSE_CHECKPOINT
    best = [Path(c.best_model_path) for c in _best_checkpoints(trainer) if c.best_model_path]
    is_writer = trainer.is_global_zero and best and best[0].is_file()
    if is_writer and read_weights(best[0])["epoch"] < dense_epochs:
        best[0].replace(dense)
    trainer.strategy.barrier()
    if not dense.is_file():
        raise ValueError(f"{dense}: does not exist; the dense stage needs a ModelCheckpoint that "
                         "saves its best epoch")  # fmt: skip
    for checkpoint in _best_checkpoints(trainer):
        worst = torch.tensor(_worst(checkpoint.mode))
        checkpoint.best_k_models, checkpoint.best_model_path = {}, ""
        checkpoint.best_model_score, checkpoint.kth_best_model_path = None, ""
        checkpoint.kth_value = worst
    return dense


class SelectionPause:
    """Suspends the choice of the best epoch and early stopping until the final density."""

    def __init__(self) -> None:
        self.save_top_k: dict[int, int] = {}

    def pause(self, trainer: L.Trainer, *, is_dense_stage: bool) -> None:
        """Resets early stopping; the best epoch is chosen in the dense stage only."""
        for stopping in find_callbacks(trainer, EarlyStopping):
            worst = torch.tensor(_worst(stopping.mode))
            stopping.wait_count, stopping.best_score = 0, worst
        for checkpoint in _best_checkpoints(trainer):
            save_top_k = self.save_top_k.setdefault(id(checkpoint), checkpoint.save_top_k)
            checkpoint.save_top_k = save_top_k if is_dense_stage else 0

    def resume(self, trainer: L.Trainer) -> None:
        """Restores the choice of the best epoch."""
        for checkpoint in _best_checkpoints(trainer):
            save_top_k = self.save_top_k.get(id(checkpoint), checkpoint.save_top_k)
            checkpoint.save_top_k = save_top_k


def _join(
    scheduler: ClosedFormLR,
    before: Callable[[int], float],
    start: int,
    after: Callable[[int], float],
) -> Callable[[int], float]:
    def ratio(step: int) -> float:
        return before(step) if step < start else after(step) * scheduler.plateau_ratio

    return ratio


def _schedulers(trainer: L.Trainer) -> list[ClosedFormLR]:
    schedulers = []
    for config in trainer.lr_scheduler_configs:
        if not isinstance(config.scheduler, ClosedFormLR):
            kind = type(config.scheduler).__name__
            raise ValueError(f"lr_scheduler: {kind} is not a function of the step")
        schedulers.append(config.scheduler)
    return schedulers


def _best_checkpoints(trainer: L.Trainer) -> list[ModelCheckpoint]:
    return [c for c in find_callbacks(trainer, ModelCheckpoint) if c.monitor is not None]


def _worst(mode: str) -> float:
    return math.inf if mode == "min" else -math.inf
