"""Two-stage sparse training: dense, then sparse from the best dense weights, in one fit."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from callbacks.sparse_training import masks, stages
from callbacks.sparse_training.masked_weights import MaskedWeights, find_prunable
from callbacks.sparse_training.stages import DensitySchedule, Recovery
from callbacks.weights import averages, load_weights, read_matching_checkpoint
from datamodules.dataset import Batch
from datamodules.preprocess import as_settings
from evaluation.files import write_json
from evaluation.sparsity import SPARSITY_FILE
from lightning_modules.checkpoints import plain_values
from lightning_modules.freezing import require
from lightning_modules.optim import LRSchedulerConfig, closed_form_schedulers, steps_per_epoch

PROGRESS = ("is_sparse_stage", "updates", "is_selecting")


class TwoStageSparseTraining(L.Callback):
    """The first stage trains all weights; the second prunes those of its best epoch to `density`.

    Pruned values are exactly 0 in weights, gradients, optimizer state, averages and files, at
    every step. A `density` of 1.0 is the control: the same second stage with all weights. The best
    epoch is chosen, and early stopping counts, at the final density only; the best epoch of the
    first stage remains as dense.ckpt. A resume verifies the masks against the weights.

    Args:
        density: fraction of the prunable values that remain.
        dense_epochs: length of the first stage; 0 for the second stage alone.
        sparse_epochs: length of the second stage; both together are the trainer's max_epochs.
        distribution: density of each layer: the same (uniform), by Erdos-Renyi kernel (erk), by
            the largest values of all layers (global), or as a fraction of the MACs (macs).
        dense_checkpoint: checkpoint from which the second stage alone starts; null starts from the
            weights of the model.
        exclude: regular expressions for names of weights that are not pruned.
        criterion: keeps the values of largest magnitude, or random ones as a baseline.
        density_schedule: when the density falls.
        recovery: learning rates of the second stage.
        control: run folder of the control, whose predictions the report compares with this run's.
    """

    def __init__(
        self, density: float = 0.25, dense_epochs: int = 60, sparse_epochs: int = 20,
        distribution: Literal["uniform", "erk", "global", "macs"] = "uniform",
        dense_checkpoint: str | None = None, exclude: list[str] | None = None,
        criterion: Literal["magnitude", "random"] = "magnitude",
        density_schedule: DensitySchedule = DensitySchedule(), recovery: Recovery = Recovery(),
        control: str | None = None,
    ) -> None:  # fmt: skip
        require("density", density, 0 < density <= 1, "above 0 and at most 1")
        require("dense_epochs", dense_epochs, dense_epochs >= 0, "at least 0")
        require("sparse_epochs", sparse_epochs, sparse_epochs >= 1, "at least 1")
        if dense_checkpoint is not None and dense_epochs:
            given = f"dense_checkpoint: {dense_checkpoint}"
            raise ValueError(f"{given} needs dense_epochs 0, not {dense_epochs}")
        self.density, self.distribution, self.criterion = density, distribution, criterion
        self.dense_epochs, self.sparse_epochs = dense_epochs, sparse_epochs
        self.dense_checkpoint, self.exclude = dense_checkpoint, list(exclude or [])
        self.density_schedule = as_settings(DensitySchedule, density_schedule)
        self.recovery = as_settings(Recovery, recovery)
        self.control = control  # a resume may name another: it does not change the training
        self._pause = stages.SelectionPause()
        self._own_schedule: LRSchedulerConfig | None = None  # the module's, during a fit
        self._reset()

    def _reset(self) -> None:
        """Forgets the progress of an earlier fit."""
        self.masked: MaskedWeights | None = None
        self.is_sparse_stage, self.updates = False, 0
        self._previous_masks: list[Tensor] | None = None  # at the start of an epoch that sets some
        self.is_selecting = False  # whether the best epoch is chosen at the final density
        self._regrows = False  # whether the next optimizer step exchanges values
        self._loaded_state: dict[str, Any] | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Gives the module the schedule of the dense stage; ValueError if settings cannot work."""
        if stage != "fit":
            return
        dense, sparse = self.dense_epochs, self.sparse_epochs
        if trainer.max_epochs != dense + sparse and not vars(trainer).get("fast_dev_run"):
            total = f"dense_epochs {dense} + sparse_epochs {sparse} = {dense + sparse}"
            raise ValueError(f"trainer.max_epochs: {trainer.max_epochs} is not {total}")
        if not isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy):
            kind = type(trainer.strategy).__name__
            raise ValueError(f"trainer.strategy: {kind} shards weights, which masks do not support")
        if not isinstance(pl_module, stages.ScheduledModule):
            kind = type(pl_module).__name__
            needed = "`optimizer` and `lr_scheduler` settings, which sparse training needs"
            raise ValueError(f"{kind} has no {needed}; use lightning_modules.ImageClassifier")
        self._reset()
        self._module, config = pl_module, pl_module.lr_scheduler
        self._sparse_schedule = stages.sparse_schedule(config, self.recovery, sparse)
        self._lr_ratio = self.recovery.lr / pl_module.optimizer.lr
        self._own_schedule = config
        pl_module.lr_scheduler = stages.dense_schedule(config, dense)

    def teardown(self, *args: object, stage: str = "fit") -> None:
        """Gives the module its own schedule back, for another fit of it."""
        if self._own_schedule is not None:
            self._module.lr_scheduler, self._own_schedule = self._own_schedule, None

    def on_exception(self, *args: object) -> None:
        """Gives the module its own schedule back after a fit that failed, which has no teardown."""
        self.teardown()

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """ValueError if `dense_checkpoint` cannot be used; a resumed fit does not need it."""
        if self.dense_checkpoint is not None and self._loaded_state is None:
            read_matching_checkpoint(Path(self.dense_checkpoint), trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Joins the learning rates of both stages; a resume restores and verifies the masks."""
        steps = steps_per_epoch(trainer)
        self.first_step, self.num_steps = self.dense_epochs * steps, self.sparse_epochs * steps
        stages.join_schedules(trainer, self.first_step, self._sparse_schedule, self._lr_ratio)
        self._restore(trainer, pl_module)
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(lambda *_: self._masked.mask_weights())

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Starts the sparse stage and updates the masks when they are due."""
        if self.masked is None:
            image = torch.zeros_like(batch["image"][:1])
            self.masked = MaskedWeights(pl_module, find_prunable(pl_module, image, self.exclude))
        if not self.is_sparse_stage and trainer.current_epoch >= self.dense_epochs:
            self._start_sparse_stage(trainer, pl_module)
        if self.is_sparse_stage:
            step = trainer.global_step - self.first_step
            updates = self.density_schedule.updates_before(step, self.num_steps)
            if updates > self.updates:
                self._update_masks(trainer, updates)

    def on_before_optimizer_step(self, trainer: L.Trainer, *args: object) -> None:
        """Regrows values by their gradients if due; then masks gradients, before clipping."""
        if self._regrows:
            self._regrows = False
            fraction = self.density_schedule.exchanged_fraction(self.updates, self.num_steps)
            if (regrown := self._masked.regrown_masks(fraction)) is not None:
                self._set_masks(trainer, regrown)
        self._masked.mask_gradients()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, *args: object
    ) -> None:
        """Logs density, MACs and churn (fraction of the mask changed) once per epoch."""
        if trainer.is_last_batch:
            masked = self._masked
            metrics = {"stage": 1.0 + self.is_sparse_stage, **masked.sparsity_metrics(pl_module)}
            metrics["churn"] = masked.changed_fraction(self._previous_masks)
            values = {f"sparse/{name}": value for name, value in metrics.items()}
            pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1)
            self._previous_masks = None

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets checkpoints and early stopping use this epoch if it has the final density."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if not self.is_selecting:
            self._pause.pause(trainer, is_dense_stage=not self.is_sparse_stage)
        if self.has_final_density:
            self._pause.resume(trainer)
            self.is_selecting = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Writes sparsity.json, before checkpoints are saved."""
        if trainer.is_global_zero and self.is_sparse_stage:
            folder = Path(trainer.default_root_dir)
            control = None if self.control is None else os.path.relpath(self.control, folder)
            report = {**self._masked.report(pl_module), "settings": self.settings}
            write_json(folder / SPARSITY_FILE, report | {"control": control})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Verifies that every pruned value is still 0."""
        if self.is_sparse_stage:
            self._masked.verify(trainer.optimizers)

    @property
    def has_final_density(self) -> bool:
        """Whether all mask updates are done."""
        total = self.density_schedule.total_updates(self.num_steps)
        return self.is_sparse_stage and self.updates == total

    @property
    def settings(self) -> dict[str, Any]:
        """The settings that a resume must share, as plain data."""
        names = ["density", "dense_epochs", "sparse_epochs", "distribution", "exclude", "criterion"]
        names += ["density_schedule", "recovery"]
        return plain_values({name: getattr(self, name) for name in names})

    def state_dict(self) -> dict[str, Any]:
        """Settings, prunable weights, masks as packed bits with their digest, and progress."""
        if self.masked is None:
            return {"settings": self.settings, "layers": []}
        progress = {name: getattr(self, name) for name in PROGRESS}
        return {"settings": self.settings, **self.masked.state_dict(), **progress}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Stores the state until training starts, when there are weights to verify it against."""
        self._loaded_state = state_dict

    @property
    def _masked(self) -> MaskedWeights:
        """`masked`, which the first batch creates; ValueError before."""
        if self.masked is None:
            raise ValueError("masks: there are none before the first batch")
        return self.masked

    def _start_sparse_stage(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Loads the best dense weights and resets optimizer state and learning rates."""
        source = Path(self.dense_checkpoint) if self.dense_checkpoint else None
        if self.dense_epochs:
            source = stages.save_dense_checkpoint(trainer, self.dense_epochs)
        if source is not None:
            load_weights(source, read_matching_checkpoint(source, trainer), trainer, module)
        for optimizer in trainer.optimizers:
            optimizer.state.clear()
        for scheduler in closed_form_schedulers(trainer):
            scheduler.reset_plateau()  # discards the reductions of the dense stage
        self._module.lr_scheduler = self._sparse_schedule
        self.is_sparse_stage = True

    def _update_masks(self, trainer: L.Trainer, updates: int) -> None:
        """Prunes to the density after `updates` updates; the first process computes the masks."""
        pruned: list[Tensor] = []
        if trainer.is_global_zero:
            remaining = self.density_schedule.remaining_fraction(updates, self.num_steps)
            method = (self.density, self.distribution, self.criterion)
            pruned = self._masked.pruned_masks(*method, remaining)
        self._set_masks(trainer, pruned)
        self.updates = updates
        self._regrows = self.density_schedule.regrow_fraction > 0 and not self.has_final_density

    def _set_masks(self, trainer: L.Trainer, new_masks: Sequence[Tensor]) -> None:
        """Applies the first process's masks to all weights, optimizer states and averages."""
        masked = self._masked
        self._previous_masks = self._previous_masks or masked.masks
        packed = trainer.strategy.broadcast([masks.pack_mask(mask) for mask in new_masks])
        masked.set_masks(map(masks.unpack_mask, packed, masked.sizes))
        masked.mask_weights()
        for optimizer in trainer.optimizers:
            masked.mask_optimizer_state(optimizer)
        for average in averages(trainer):
            masked.mask_copy(average.module)

    def _restore(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Restores masks and progress from a checkpoint's state, and verifies the masks."""
        state, self._loaded_state = self._loaded_state, None
        if trainer.global_step > self.first_step and not (state or {}).get("is_sparse_stage"):
            raise ValueError("masks: the checkpoint is from the sparse stage and has no masks")
        if state is None:
            return
        for name, value in self.settings.items():
            saved = state["settings"].get(name)
            require(name, value, saved == value, f"the {saved} of the checkpoint")
        if state["layers"]:
            self.masked = MaskedWeights.from_state(state, module)
            for name in PROGRESS:
                setattr(self, name, state[name])
            self.masked.verify(trainer.optimizers)
        if self.is_sparse_stage:
            self._module.lr_scheduler = self._sparse_schedule
