"""Going from the dense stage to the sparse one: files, rates, and who sleeps meanwhile."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, cast

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from torch.optim.lr_scheduler import LambdaLR

from callbacks.weights import content_of

DENSE = "dense.ckpt"


@dataclass(frozen=True)
class Recovery:
    """Rates of stage 2: the peak, the schedule's name and its rise, all counted from its start.

    Whatever else the schedule needs is taken from the module's own `optimization`.

    Args:
        lr: the largest learning rate.
        schedule: its course; `none` is level.
        warmup_epochs: the linear rise from 0.
    """

    lr: float = 5e-5
    schedule: Literal["none", "cosine", "onecycle", "step", "cyclic", "plateau"] = "cosine"
    warmup_epochs: float = 1.0


class Rates(Protocol):
    """What is asked of a module's `optimization`."""

    lr: float

    def curve(self, epochs: float) -> Callable[[float], float]:
        """Share of `lr` at each moment, in epochs, of a training of `epochs`."""


def require_settings(then: dict[str, Any], now: dict[str, Any]) -> None:
    """Refuses to go on with other settings than those of the checkpoint."""
    for name in now:
        if then.get(name) != now[name]:
            raise ValueError(f"{name}: {now[name]} is not the {then.get(name)} of the checkpoint")


def steps_an_epoch(trainer: L.Trainer) -> int:
    """Optimizer steps of one epoch."""
    return math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)


def dense_optimisation(asked: object, dense_epochs: int) -> Rates:
    """The module's `optimization` with its schedule ending where stage 1 ends."""
    settings = cast(Any, asked)
    if dense_epochs and settings.epochs not in (None, dense_epochs):
        raise ValueError(
            f"optimization.epochs: {settings.epochs} is not dense_epochs {dense_epochs}"
        )
    return cast(Rates, replace(settings, epochs=dense_epochs) if dense_epochs else settings)


def sparse_optimisation(asked: object, recovery: Recovery, epochs: int) -> Rates:
    """The module's `optimization` with the rates of stage 2."""
    if recovery.warmup_epochs >= epochs:
        raise ValueError(
            f"recovery.warmup_epochs: {recovery.warmup_epochs} is not below sparse_epochs {epochs}"
        )
    return cast(Rates, replace(cast(Any, asked), **asdict(recovery), epochs=epochs))


def join_schedules(
    trainer: L.Trainer, start: int, ratio: float, curve: Callable[[float], float]
) -> None:
    """From optimizer step `start` on, rates follow `curve` (of epochs since) times `ratio`.

    Rates stay a closed form of the step count, so that a resume needs no further state.
    """
    steps = steps_an_epoch(trainer)
    for config in trainer.lr_scheduler_configs:
        schedule = config.scheduler
        if not isinstance(schedule, LambdaLR) or not hasattr(schedule, "rewrite"):
            raise ValueError(f"schedule: {type(schedule).__name__} is not a function of the step")
        schedule.lr_lambdas = [
            _joined(schedule, before, start, steps, ratio, curve) for before in schedule.lr_lambdas
        ]
        schedule.rewrite()


def begin_schedules(trainer: L.Trainer) -> None:
    """A plateau of stage 1 says nothing of stage 2."""
    for config in trainer.lr_scheduler_configs:
        cast(Any, config.scheduler).restart()


def keep_dense(trainer: L.Trainer, dense_epochs: int) -> Path:
    """Moves the best checkpoint of stage 1 to dense.ckpt; after a resume it may be there already.

    best.ckpt is from then on what it says: the best at the final density. A training that was
    killed in stage 2 may have left one of that kind, which is no dense model and is not moved.
    """
    dense = Path(trainer.default_root_dir) / DENSE
    best = [Path(c.best_model_path) for c in _choosers(trainer) if c.best_model_path]
    found = trainer.is_global_zero and best and best[0].is_file()
    if found and content_of(best[0])["epoch"] < dense_epochs:
        best[0].replace(dense)
    trainer.strategy.barrier()
    if not dense.is_file():
        raise ValueError(f"{dense}: missing; stage 1 needs a ModelCheckpoint that keeps its best")
    for chooser in _choosers(trainer):
        _forget(chooser)
    return dense


class Sleep:
    """Lets nobody choose a best epoch or stop the training before the final density."""

    def __init__(self) -> None:
        self.asked: dict[int, int] = {}

    def sleep(self, trainer: L.Trainer, *, dense: bool) -> None:
        """Early stopping forgets; the best is chosen in the dense stage alone."""
        for stopper in _callbacks(trainer, EarlyStopping):
            worst = math.inf if stopper.mode == "min" else -math.inf
            stopper.wait_count, stopper.best_score = 0, torch.tensor(worst)
        for chooser in _choosers(trainer):
            asked = self.asked.setdefault(id(chooser), chooser.save_top_k)
            chooser.save_top_k = asked if dense else 0

    def wake(self, trainer: L.Trainer) -> None:
        """Back to what was asked for."""
        for chooser in _choosers(trainer):
            chooser.save_top_k = self.asked.get(id(chooser), chooser.save_top_k)


def _joined(
    schedule: LambdaLR,
    before: Callable[[int], float],
    start: int,
    steps: int,
    ratio: float,
    curve: Callable[[float], float],
) -> Callable[[int], float]:
    def share(step: int) -> float:
        if step < start:
            return before(step)
        left: float = vars(schedule)["plateau_share"]
        return ratio * (curve((step - start) / steps) * left)

    return share


def _callbacks(trainer: L.Trainer, kind: type[Any]) -> list[Any]:
    callbacks: list[L.Callback] = vars(trainer)["callbacks"]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def _choosers(trainer: L.Trainer) -> list[ModelCheckpoint]:
    return [c for c in _callbacks(trainer, ModelCheckpoint) if c.monitor is not None]


def _forget(chooser: ModelCheckpoint) -> None:
    worst = torch.tensor(math.inf if chooser.mode == "min" else -math.inf)
    chooser.best_k_models, chooser.best_model_path, chooser.best_model_score = {}, "", None
    chooser.kth_best_model_path, chooser.kth_value = "", worst
