"""The change from the dense to the sparse stage: density, learning rates, choice of the best."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from callbacks.weights import read_matching_checkpoint
from lightning_modules import optim
from lightning_modules.freezing import require
from lightning_modules.optim import ClosedFormLR, LRSchedulerConfig


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
        for name in ("ramp_fraction", "regrow_fraction"):
            value = getattr(self, name)
            require(f"density_schedule.{name}", value, 0 <= value < 1, "from 0 to below 1")
        updates = self.num_updates
        require("density_schedule.num_updates", updates, updates >= 1, "at least 1")

    def updates_before(self, step: int, num_steps: int) -> int:
        """Number of mask updates before step `step` (from 0) of a stage of `num_steps` steps."""
        length, total = int(self.ramp_fraction * num_steps), self.total_updates(num_steps)
        return sum(i * length // total <= step for i in range(1, total + 1))

    def total_updates(self, num_steps: int) -> int:
        """Number of mask updates in a stage of `num_steps` steps."""
        return max(1, min(self.num_updates, int(self.ramp_fraction * num_steps)))

    def remaining_fraction(self, updates: int, num_steps: int) -> float:
        """(1 - updates / total)^3, the fraction of the pruning that is still to be done."""
        return float((1 - updates / self.total_updates(num_steps)) ** 3)

    def exchanged_fraction(self, updates: int, num_steps: int) -> float:
        """regrow_fraction * (1 + cos(pi * updates / total)) / 2, of the remaining values."""
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

    optimizer: optim.OptimizerConfig
    lr_scheduler: LRSchedulerConfig


def dense_schedule(config: LRSchedulerConfig, dense_epochs: int) -> LRSchedulerConfig:
    """The model's schedule, made for the length of the dense stage (unless that is 0)."""
    is_valid = not dense_epochs or config.epochs in (None, dense_epochs)
    require("lr_scheduler.epochs", config.epochs, is_valid, f"dense_epochs {dense_epochs}")
    return replace(config, epochs=dense_epochs) if dense_epochs else config


def sparse_schedule(
    config: LRSchedulerConfig, recovery: Recovery, sparse_epochs: int
) -> LRSchedulerConfig:
    """The model's schedule with the settings of `recovery` and the length of the sparse stage."""
    name, warmup, allowed = recovery.lr_scheduler, recovery.warmup_epochs, "below sparse_epochs"
    require("recovery.warmup_epochs", warmup, warmup < sparse_epochs, f"{allowed} {sparse_epochs}")
    return replace(config, name=name, warmup_epochs=warmup, epochs=sparse_epochs)


def join_schedules(trainer: L.Trainer, start: int, config: LRSchedulerConfig, ratio: float) -> None:
    """Lets learning rates follow `config` times `ratio` from optimizer step `start` on.

    Rates remain a function of the step, so that a resume needs no further state.
    """
    curve, steps = config.curve(float(config.epochs or 0)), optim.steps_per_epoch(trainer)

    def join(scheduler: ClosedFormLR, before: Callable[[int], float]) -> Callable[[int], float]:
        """The rate function `before`, replaced from step `start` on."""

        def ratio_after(step: int) -> float:
            return ratio * curve((step - start) / steps) * scheduler.plateau_ratio

        return lambda step: before(step) if step < start else ratio_after(step)

    for scheduler in optim.closed_form_schedulers(trainer):
        scheduler.lr_lambdas = [join(scheduler, before) for before in scheduler.lr_lambdas]
        scheduler.update_rates()


def save_dense_checkpoint(trainer: L.Trainer, dense_epochs: int) -> Path:
    """Moves the best checkpoint of the dense stage to dense.ckpt; returns its path.

    After a resume dense.ckpt may exist: a best.ckpt of the sparse stage does not move. The choice
    of the best epoch starts again.
    """
    dense = Path(trainer.default_root_dir) / "dense.ckpt"
    checkpoints = _best_epoch_callbacks(trainer)
    best = [Path(c.best_model_path) for c in checkpoints if c.best_model_path]
    is_writer = trainer.is_global_zero and best and best[0].is_file()
    if is_writer and read_matching_checkpoint(best[0], trainer)["epoch"] < dense_epochs:
        best[0].replace(dense)
    trainer.strategy.barrier()
    if not dense.is_file():
        needed = "the dense stage needs a ModelCheckpoint that saves its best epoch"
        raise ValueError(f"{dense}: does not exist; {needed}")
    for checkpoint in checkpoints:
        checkpoint.best_k_models, checkpoint.kth_value = {}, _worst_value(checkpoint.mode)
        checkpoint.best_model_path = checkpoint.kth_best_model_path = ""
        checkpoint.best_model_score = None
    return dense


class SelectionPause:
    """Suspends the choice of the best epoch and early stopping until the final density."""

    def __init__(self) -> None:
        self.save_top_k: dict[int, int] = {}

    def pause(self, trainer: L.Trainer, *, is_dense_stage: bool) -> None:
        """Resets early stopping; in the sparse stage, suspends the choice of the best epoch."""
        for stopping in trainer.early_stopping_callbacks:
            stopping.wait_count, stopping.best_score = 0, _worst_value(stopping.mode)
        for checkpoint in _best_epoch_callbacks(trainer):
            save_top_k = self.save_top_k.setdefault(id(checkpoint), checkpoint.save_top_k)
            checkpoint.save_top_k = save_top_k if is_dense_stage else 0

    def resume(self, trainer: L.Trainer) -> None:
        """Restores the choice of the best epoch."""
        for checkpoint in _best_epoch_callbacks(trainer):
            checkpoint.save_top_k = self.save_top_k.get(id(checkpoint), checkpoint.save_top_k)


def _best_epoch_callbacks(trainer: L.Trainer) -> list[ModelCheckpoint]:
    """The callbacks that save the best epoch, which have a `monitor`."""
    callbacks = [c for c in trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
    return [callback for callback in callbacks if callback.monitor is not None]


def _worst_value(mode: str) -> torch.Tensor:
    """Infinity for a metric to be minimized (`mode` min), else minus infinity."""
    return torch.tensor(math.inf if mode == "min" else -math.inf)
