"""best.ckpt and last.ckpt, and what makes a resumed fit equal to one that was not interrupted."""

import os
import random
import shutil
import zipfile
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from evaluation.files import atomic_file
from evaluation.metrics.registry import monitor_mode
from lightning_modules.checkpoints import read_content

Mode = Literal["min", "max"]
LAST, PREVIOUS = "last.ckpt", "previous.ckpt"
PATH_KEYS = ("best_model_path", "kth_best_model_path", "last_model_path")


class BestAndLastCheckpoint(ModelCheckpoint):
    """Saves the best epoch by `monitor` as best.ckpt and the latest as last.ckpt.

    A resumed fit keeps its best epoch so far, also if it continues in a renamed or another folder.

    Args:
        monitor: metric that decides which epoch is best.
        mode: whether a smaller (`min`) or a larger (`max`) value is better; null is enough for a
            loss and for a metric of `evaluation.metrics.registry`, which records it.
    """

    def __init__(self, monitor: str = "val/loss", mode: Mode | None = None) -> None:
        mode = resolve_mode(monitor, mode)
        options: dict[str, Any] = {"save_last": True, "enable_version_counter": False}
        super().__init__(filename="best", monitor=monitor, mode=mode, **options)
        self.restores_best = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lets checkpoints be written into the run folder, by `AtomicCheckpointIO`."""
        self.dirpath = str(Path(trainer.default_root_dir))
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        super().setup(trainer, pl_module, stage)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Copies the best checkpoint of a resumed fit from its folder, for `load_state_dict`."""
        state = checkpoint.get("callbacks", {}).get(self.state_key)
        self.restores_best = False
        if state and trainer.state.fn == "fit" and trainer.ckpt_path:
            source = Path(str(trainer.ckpt_path)).parent
            has_best = trainer.is_global_zero and self._copy_best(state, source)
            self.restores_best = trainer.strategy.broadcast(has_best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the best epoch, which Lightning discards if the folder's path has changed."""
        if self.restores_best:
            folder = Path(str(self.dirpath))

            def in_run_folder(path: str) -> str:
                """The path of the same file in this fit's folder; "" stays."""
                return str(folder / Path(path).name) if path else path

            paths = {key: in_run_folder(state_dict[key]) for key in PATH_KEYS}
            best = {in_run_folder(path): x for path, x in state_dict["best_k_models"].items()}
            state_dict = {**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath}
        super().load_state_dict(state_dict)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves last.ckpt after every epoch; Lightning saves it with a new best epoch only."""
        super().on_train_epoch_end(trainer, pl_module)
        if not self._should_skip_saving_checkpoint(trainer):
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))

    def _copy_best(self, state: dict[str, Any], source: Path) -> bool:
        """Copies the best checkpoint that `state` names from folder `source` to the run folder.

        Returns False if it is missing, or if the run folder has one of another fit.
        """
        folder = Path(str(self.dirpath))
        if not state["best_model_path"] or folder.resolve() == source.resolve():
            return True
        best = source / Path(state["best_model_path"]).name
        if not best.is_file() or (folder / best.name).is_file():
            return False
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(best, folder / best.name)
        return True


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a temporary file and renames it; the last.ckpt that it replaces is previous.ckpt.

    Lightning writes into the folder of temporary files; if that is on another file system, a kill
    or a full disk leaves half a checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: object = None
    ) -> None:
        """Saves a checkpoint completely or not at all."""
        with atomic_file(path) as stream:
            torch.save(checkpoint, stream)
            stream.flush()
            os.fsync(stream.fileno())
            if Path(path).name == LAST and Path(path).exists():
                Path(path).replace(Path(path).with_name(PREVIOUS))


class ResumableEarlyStopping(EarlyStopping):
    """Early stopping that trains no further epoch in a resumed fit; Lightning's would train one.

    Args:
        monitor: metric that must improve.
        patience: validations without improvement after which the fit stops; by default never.
        mode: whether a smaller (`min`) or a larger (`max`) value is better; null is enough for a
            loss and for a metric of `evaluation.metrics.registry`, which records it.
        **kwargs: further arguments of Lightning's EarlyStopping.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        patience: int = 1_000_000,
        mode: Mode | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(monitor, patience=patience, mode=resolve_mode(monitor, mode), **kwargs)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops before the first step if the fit had already stopped."""
        if self.wait_count >= self.patience:
            trainer.should_stop = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks the metric, which a fit that ends before its first validation does not have."""
        is_validated = any(name.startswith("val/") for name in trainer.callback_metrics)
        if is_validated or self.monitor in trainer.callback_metrics:
            super().on_train_epoch_end(trainer, pl_module)


class StepSeeding(L.Callback):
    """Seeds torch, numpy and random before a step by (seed, step in the epoch, epoch, process).

    The random numbers of a step (dropout, Mixup) then depend on no state that a checkpoint would
    have to store. The seed is that of `seed_everything`.
    """

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: object, batch_idx: int
    ) -> None:
        """Seeds the global random number generators."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        entropy = (seed, batch_idx, trainer.current_epoch, trainer.global_rank)
        step_seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        for set_seed in (torch.manual_seed, np.random.seed, random.seed):
            set_seed(step_seed)


def resumable_checkpoint(folder: Path) -> tuple[Path | None, str]:
    """The latest checkpoint of a run folder that a fit can resume from, or None.

    The second value is a text with the problems of newer checkpoints, or "".
    """
    problems: list[str] = []
    for file in (folder / LAST, folder / PREVIOUS):
        problem = _resume_problem(file) if file.is_file() else None
        if problem == "":
            return file, "; ".join(problems)
        problems += [problem] if problem else []
    return None, "; ".join(problems)


def _resume_problem(file: Path) -> str:
    """Why a fit cannot resume from a checkpoint, or would miss its best epoch; else ""."""
    try:
        states: dict[str, dict[str, Any]] = _read_intact(file).get("callbacks", {})
        own = [s for name, s in states.items() if name.startswith(BestAndLastCheckpoint.__name__)]
        is_dense_stage = any(s.get("is_sparse_stage") is False for s in states.values())
        if is_dense_stage and file.with_name("dense.ckpt").is_file():
            return ""  # the sparse stage had renamed best.ckpt
        for path in filter(None, (state["best_model_path"] for state in own)):
            _read_intact(file.with_name(Path(path).name))
    except (ValueError, zipfile.BadZipFile) as error:
        return str(error)
    return ""


def _read_intact(file: Path) -> dict[str, Any]:
    """The content of a checkpoint; ValueError if its bytes and its checksums disagree."""
    content = read_content(file, mmap=True)
    with zipfile.ZipFile(file) as archive:
        if name := archive.testzip():
            raise ValueError(f"{file}: damaged ({name} does not have its checksum)")
    return content


def resolve_mode(monitor: str, mode: Mode | None) -> Mode:
    """The mode of a known metric, else `mode`; ValueError if they differ or both are missing."""
    try:
        known = monitor_mode(monitor)
    except ValueError as error:
        if mode is not None:
            return mode
        reason = f"unknown metric {monitor!r}; set mode: min or max"
        raise ValueError(f"monitor: {reason}") from error
    if mode not in (None, known):
        better = "larger" if known == "max" else "smaller"
        raise ValueError(f"mode: {mode!r} is wrong for {monitor!r}: {better} values are better")
    return known
