"""Two-stage sparse training: dense, then sparse from the best dense weights, in one fit."""

import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from callbacks import weights
from callbacks.sparse_training import mask_update, masks, stages
from callbacks.sparse_training import state as account
from callbacks.sparse_training.density_schedule import DensitySchedule
from callbacks.sparse_training.masked_weights import MaskedWeights
from callbacks.sparse_training.prunable import Prunable, prunable
from callbacks.sparse_training.stages import Recovery
from evaluation import sparsity
from evaluation.files import write_json

SETTINGS = ("density", "dense_epochs", "sparse_epochs", "split", "exclude", "choice")
PROGRESS = ("begun", "updates", "churned", "settled")


class TwoStageSparseTraining(L.Callback):
    """Stage 1 trains every weight; stage 2 goes on from its best with `density` of them.

    A pruned number is exactly 0 in weights, gradients, optimizer state, averages and files, at
    every step. `density` 1.0 is the control: the same stage 2 with every weight. The best
    epoch is chosen, and early stopping counts, at the final density only; the best of stage 1
    stays as dense.ckpt. Masks and their hash are part of this callback's state; on resume they
    are held against the weights, never chosen anew.

    Args:
        density: share of the prunable numbers that stay.
        dense_epochs: length of stage 1; 0 for stage 2 alone.
        sparse_epochs: length of stage 2; together they are the trainer's max_epochs.
        split: how `density` is shared out: the same in each layer, by Erdos-Renyi kernel, to
            the largest numbers of all layers, or as a share of multiply-accumulates.
        start: checkpoint that stage 2 alone starts from; else from the module's own weights.
        exclude: regular expressions for names of weights that are left alone.
        choice: the largest numbers stay, or random ones (to see what choosing is worth).
        ramp: when the masks shrink.
        recovery: rates of stage 2.
        control: run folder of the control, which the report sets this run's decisions beside.
    """

    def __init__(
        self,
        density: float = 0.25,
        dense_epochs: int = 60,
        sparse_epochs: int = 20,
        split: Literal["uniform", "erk", "global", "macs"] = "uniform",
        start: str | None = None,
        exclude: list[str] | None = None,
        choice: Literal["magnitude", "random"] = "magnitude",
        ramp: DensitySchedule = DensitySchedule(),
        recovery: Recovery = Recovery(),
        control: str | None = None,
    ) -> None:
        if not 0 < density <= 1:
            raise ValueError(f"density: {density} is not above 0 and at most 1")
        if dense_epochs < 0 or sparse_epochs < 1:
            raise ValueError(f"sparse_epochs: {sparse_epochs} is not at least 1, "
                             f"or dense_epochs: {dense_epochs} not at least 0")  # fmt: skip
        if start is not None and dense_epochs:
            raise ValueError(f"start: {start} needs dense_epochs 0, not {dense_epochs}")
        self.density, self.split, self.start, self.choice = density, split, start, choice
        self.dense_epochs, self.sparse_epochs = dense_epochs, sparse_epochs
        self.exclude, self.ramp, self.recovery = list(exclude or []), ramp, recovery
        self.control = control  # no setting of the training, so a resume may name another
        self.found: Prunable | None = None
        self.held: MaskedWeights | None = None
        self.begun, self.updates, self.churned, self.settled = False, 0, 0.0, False
        self._swap_due, self._sleep = False, stages.Sleep()
        self._state: dict[str, Any] | None = None
        self._handles: list[RemovableHandle] = []

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuses what cannot work, before anything is trained."""
        if stage != "fit":
            return
        epochs = self.dense_epochs + self.sparse_epochs
        if trainer.max_epochs != epochs and not vars(trainer).get("fast_dev_run"):
            raise ValueError(
                f"trainer.max_epochs: {trainer.max_epochs} is not dense_epochs "
                f"{self.dense_epochs} + sparse_epochs {self.sparse_epochs} = {epochs}"
            )
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            kind = type(trainer.strategy).__name__
            raise ValueError(f"trainer.strategy: {kind} shards weights; masks need them whole")
        asked = cast(Any, pl_module).optimization
        self._dense = stages.dense_optimisation(asked, self.dense_epochs)
        self._sparse = stages.sparse_optimisation(asked, self.recovery, self.sparse_epochs)
        cast(Any, pl_module).optimization = self._dense

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuses a `start` that cannot be used; a resumed training has no more need of it."""
        if self.start is not None and self._state is None:
            path = Path(self.start)
            weights.require_same_data(path, weights.content_of(path), trainer, pl_module)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Joins the schedules; after a resume takes the masks up and verifies them."""
        per_epoch = stages.steps_an_epoch(trainer)
        self.first, self.steps = self.dense_epochs * per_epoch, self.sparse_epochs * per_epoch
        curve = self._sparse.curve(float(self.sparse_epochs))
        ratio = self._sparse.lr / self._dense.lr
        stages.join_schedules(trainer, self.first, ratio, curve)
        self._resume(trainer, pl_module)
        self._handles = [o.register_step_post_hook(self._after_step) for o in trainer.optimizers]

    def on_train_batch_start(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        batch: dict[str, Tensor],
        batch_idx: int,
    ) -> None:
        """Begins stage 2 and updates the masks, when it is time."""
        if self.held is None:
            self.found = prunable(pl_module, torch.zeros_like(batch["image"][:1]), self.exclude)
            self.held = MaskedWeights(pl_module, self.found.layers)
        if not self.begun and trainer.current_epoch >= self.dense_epochs:
            self._begin(trainer, pl_module)
        due = self.ramp.due(trainer.global_step - self.first, self.steps) if self.begun else 0
        if due > self.updates:
            self._update(trainer, due)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer
    ) -> None:
        """Masks gradients, before they are clipped."""
        if self._swap_due:
            self._swap(trainer)
        self._held.hold_gradients()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: object, batch: object,
        batch_idx: int,
    ) -> None:  # fmt: skip
        """Logs the epoch's row for history.csv."""
        if trainer.is_last_batch:
            row = {"stage": 1.0 + self.begun, **self.account(pl_module)}
            pl_module.log_dict({f"sparse/{k}": v for k, v in row.items()}, on_step=False,
                               on_epoch=True, batch_size=1)  # fmt: skip
            self.churned = 0.0

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Wakes those who choose the best, or stop, at the final density."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if not self.settled:
            self._sleep.sleep(trainer, dense=not self.begun)
        if self.final:
            self._sleep.wake(trainer)
            self.settled = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes sparsity.json, before last.ckpt: a kill after the last epoch leaves both."""
        if trainer.is_global_zero and self.held is not None and self.begun:
            folder = Path(trainer.default_root_dir)
            said = account.file(self._found, self._held, pl_module)
            said |= {"settings": self.settings, "control": self._control(folder)}
            write_json(folder / sparsity.FILE, said)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Verifies that no zero has moved."""
        self._release()
        if self.held is not None and self.begun:
            self._held.verify(trainer.optimizers)

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        """Lets go of the optimizers."""
        self._release()

    @property
    def final(self) -> bool:
        """Whether the masks have their final density."""
        return self.begun and self.updates == self.ramp.many(self.steps)

    @property
    def settings(self) -> dict[str, Any]:
        """What a resume must not change, as plain data."""
        plain = {name: getattr(self, name) for name in SETTINGS}
        return plain | {"ramp": asdict(self.ramp), "recovery": asdict(self.recovery)}

    def account(self, module: L.LightningModule) -> dict[str, float]:
        """The shares of `account`, and churn: the share of all masks that changed in the epoch."""
        return {**account.shares(self._found, self._held, module), "churn": self.churned}

    def state_dict(self) -> dict[str, Any]:
        """Settings, layers, packed masks with their hash, and how far the ramp has come."""
        if self.held is None:
            return {"settings": self.settings, "layers": []}
        progress = {name: getattr(self, name) for name in PROGRESS}
        return {"settings": self.settings, **account.state(self._found, self._held), **progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the state for the start of the training, when there are weights to verify."""
        self._state = state_dict

    @property
    def _held(self) -> MaskedWeights:
        if self.held is None:
            raise ValueError("masks: no batch was seen yet")
        return self.held

    @property
    def _found(self) -> Prunable:
        if self.found is None:
            raise ValueError("masks: no batch was seen yet")
        return self.found

    def _begin(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Stage 2: the best dense weights, a new optimizer state, new rates."""
        source = Path(self.start) if self.start else None
        if self.dense_epochs:
            source = stages.keep_dense(trainer, self.dense_epochs)
        if source is not None:
            weights.put(source, weights.content_of(source), trainer, module)
            weights.forget_averages(trainer)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        stages.begin_schedules(trainer)
        cast(Any, module).optimization = self._sparse
        self.begun = True

    def _update(self, trainer: L.Trainer, due: int) -> None:
        """One step of the ramp, decided by the first process."""
        many = self.ramp.many(self.steps)
        settings = (self.density, self.split, self.choice, (1 - due / many) ** 3)
        fewer = mask_update.fewer(self._held, *settings) if trainer.is_global_zero else []
        self._put(trainer, fewer)
        self.updates = due
        self._swap_due = self.ramp.regrow > 0 and due < many

    def _swap(self, trainer: L.Trainer) -> None:
        """Exchanges numbers by their gradients, which are still whole."""
        self._swap_due = False
        done = math.pi * self.updates / self.ramp.many(self.steps)
        kept = mask_update.exchanged(self._held, self.ramp.regrow * (1 + math.cos(done)) / 2)
        if kept is not None:
            self._put(trainer, kept)

    def _put(self, trainer: L.Trainer, kept: list[Tensor]) -> None:
        """The first process's masks on every process, held from now on."""
        packed = [masks.pack(mask) for mask in kept]
        layers, before = self._found.layers, self._held.kept
        packed, digest = trainer.strategy.broadcast((packed, masks.digest(layers, packed) if kept
                                                     else ""))  # fmt: skip
        same = masks.digest(layers, packed) == digest
        if not trainer.strategy.reduce_boolean_decision(same):
            raise ValueError("masks: the processes do not have the same ones")
        self._hold(
            trainer, [masks.unpack(p, la.size) for p, la in zip(packed, layers, strict=True)]
        )
        changed = sum(int((a != b).sum()) for a, b in zip(before, self._held.kept, strict=True))
        self.churned += changed / sum(layer.size for layer in layers)

    def _hold(self, trainer: L.Trainer, kept: list[Tensor]) -> None:
        self._held.put(kept)
        self._held.hold_weights()
        for optimizer in trainer.optimizers:
            self._held.hold_state(optimizer)
        for average in weights.averages(trainer):
            self._held.hold_copy(average)

    def _after_step(self, *_: object) -> None:
        self._held.hold_weights()

    def _resume(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Takes masks out of a checkpoint's state; a disagreement is an error."""
        state, self._state = self._state, None
        if trainer.global_step > self.first and not (state or {}).get("begun"):
            raise ValueError("masks: the checkpoint is from stage 2 and holds none")
        if state is None:
            return
        stages.require_settings(state["settings"], self.settings)
        if state["layers"]:
            self.found, self.held = account.taken(state, module)
            for name in PROGRESS:
                setattr(self, name, state[name])
            self._held.verify(trainer.optimizers)
        if self.begun:
            cast(Any, module).optimization = self._sparse

    def _control(self, folder: Path) -> str | None:
        """The control's folder as seen from the run's."""
        return None if self.control is None else os.path.relpath(self.control, folder)

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
