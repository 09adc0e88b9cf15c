"""Checks before a run starts, its default checkpoint, and smaller batches when memory is full."""

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import cast, get_type_hints

import torch
from jsonargparse import Namespace

from callbacks.checkpoint import LAST, PREVIOUS, BestAndLastCheckpoint, resumable_checkpoint
from callbacks.writers import HistoryWriter, PredictionWriter, ResultsWriter
from consilium.config_files import source_file
from consilium.training.run_lock import given_options, print_once, refuse_finished_run
from evaluation.metrics.clinical import clinical_use
from lightning_modules import backbones
from lightning_modules.base import EPOCH_METRICS
from lightning_modules.checkpoints import argument_types
from lightning_modules.classifier import ImageClassifier
from lightning_modules.ensemble import EnsembleModule

Callbacks = list[Namespace] | Namespace | None
WRITERS = (BestAndLastCheckpoint, HistoryWriter, PredictionWriter, ResultsWriter)
RUN_CONFIG = "config.yaml"  # in a run folder
AUTO_BATCH = "--auto_batch"
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class OutOfMemory(ValueError):
    """A batch that did not fit into memory; `flags` halve it at the same effective batch size."""

    def __init__(self, batch_size: int, accumulate: int, run: str) -> None:
        half, double = str(max(1, batch_size // 2)), str(accumulate * 2)
        self.flags = ["--data.init_args.batch_size", half]
        self.flags += ["--trainer.accumulate_grad_batches", double]
        self.batch_size, self.run = batch_size, Path(run)
        super().__init__(
            f"out of memory with batch_size {batch_size}; for the same effective batch size give "
            f"{' '.join(self.flags)} ({AUTO_BATCH} does so automatically), which trains alike "
            "except for batch norms: they normalize by the smaller batch; "
            "backbone_args {grad_checkpointing: true} also saves memory and changes no result"
        )


def checkpoint_to_resume(folder: Path) -> Path | None:
    """The checkpoint from which a fit in a run folder continues; None if none is usable.

    Then unusable ones are removed, because the fit starts anew; ValueError if that would overwrite
    a finished run.
    """
    file, problem = resumable_checkpoint(folder)
    if file is None:
        refuse_finished_run(folder, problem)
        for name in (LAST, PREVIOUS):
            (folder / name).unlink(missing_ok=True)
    if problem:
        print_once(f"{problem}; {f'resuming from {file}' if file else 'training starts anew'}")
    return file


def require_result_callbacks(callbacks: Callbacks, files: Sequence[Path]) -> None:
    """Raises ValueError if no callback would write a checkpoint, a history or results."""
    if any(issubclass(resolve_name(item.class_path), WRITERS) for item in _as_list(callbacks)):
        return
    remedy = "give --config configs/base.yaml first; to add to its callbacks, write `callbacks+`"
    source = source_file(files, "callbacks")
    raise ValueError(f"{source}: trainer.callbacks: none of them writes results; {remedy}")


def check_fit_config(config: Namespace) -> None:
    """Raises ValueError if a fit would train nothing, or monitor a metric that is not computed."""
    for name in ("max_epochs", "max_steps"):
        if config.trainer[name] == 0:
            raise ValueError(f"--trainer.{name} 0: must be at least 1, or -1 for no limit")
    model = resolve_name(config.model.class_path)
    if issubclass(model, EnsembleModule):
        raise ValueError("model: an ensemble is not trained: fit its members, then test it")
    if not issubclass(model, ImageClassifier | EnsembleModule):
        reason = "is no subclass of lightning_modules.ImageClassifier, and has no checkpoints"
        raise ValueError(f"model: {config.model.class_path} {reason}")
    if not config.model.class_path.startswith("lightning_modules."):
        return  # other classes log other metrics
    known = [f"val/{name}" for name in EPOCH_METRICS]
    for argument, metric in monitored_metrics(config).items():
        if metric not in known and (metric.startswith("val/") or "/" not in metric):
            raise ValueError(f"{argument} {metric!r}: the metrics of val are {', '.join(known)}")


def check_settings(config: Namespace, files: Sequence[Path]) -> None:
    """Raises ValueError if the backbone is unknown or a group has a value outside its range.

    Groups such as `optimizer` are dataclasses that check their values when they are created.
    """
    if not 0 <= config.seed_everything < 1 << 32:
        allowed = f"must be from 0 to {(1 << 32) - 1}"
        raise ValueError(f"--seed_everything {config.seed_everything}: {allowed}")
    for item in (config.model, config.data, *_as_list(config.trainer.callbacks)):
        cls = resolve_name(item.class_path)
        hints = argument_types(cls)
        arguments = vars(item.init_args) if "init_args" in item else {}
        for name, values in arguments.items():
            try:
                _create_group(hints.get(name), values)
                if name == "clinical_use":
                    clinical_use(values, arguments["class_names"])
                if name == "backbone" and issubclass(cls, ImageClassifier):
                    backbones.input_size(values)  # an error for an unknown name
            except ValueError as error:
                file = source_file(files, name, values if isinstance(values, str) else None)
                raise ValueError(f"{file}: {error}") from error


def monitored_metrics(config: Namespace) -> dict[str, str]:
    """The metrics that a fit monitors, by the argument that names each."""
    monitors = {"early_stopping.monitor": config.early_stopping.monitor}
    for callback in _as_list(config.trainer.callbacks):
        monitors[f"{callback.class_path}: monitor"] = callback.get("init_args.monitor")
    if config.model.get("init_args.lr_scheduler.name") == "plateau":
        monitors["lr_scheduler.monitor"] = config.model.init_args.lr_scheduler.monitor
    return {argument: metric for argument, metric in monitors.items() if metric}


def limit_to_first_batches(trainer: Namespace) -> None:
    """Applies `fast_dev_run`; Lightning's own would leave out checkpoints, tests and reports."""
    count = int(trainer.fast_dev_run)
    for stage in ("train", "val", "test", "predict"):
        trainer[f"limit_{stage}_batches"] = count
    trainer.max_steps = math.ceil(count / trainer.accumulate_grad_batches)
    trainer.val_check_interval, trainer.check_val_every_n_epoch = 1.0, 1
    trainer.logger = trainer.fast_dev_run = False


def default_config(args: Sequence[str]) -> list[str]:
    """`--config` and `--run` to add if `args` name a checkpoint or a run folder but no config."""
    given = given_options(args)
    if given.config or given.model or not (given.ckpt_path or given.run):
        return []
    is_path = given.ckpt_path not in (None, "best", "last")
    folder = Path(given.ckpt_path).parent if is_path else Path(given.run or ".")
    file = folder / RUN_CONFIG
    if not file.is_file():
        raise ValueError(f"--config: required, as there is no {file}")
    return ["--config", str(file), *([] if given.run else ["--run", str(folder)])]


def default_checkpoint(run: Path, configs: Iterable[object], name: str = "best") -> Path:
    """Path of NAME.ckpt in the run folder or a config's folder; ValueError unless there is one."""
    folders = [run, *(Path(str(config)).parent for config in configs if config is not None)]
    file = f"{name}.ckpt"
    candidates = {(folder / file).resolve(): folder / file for folder in folders}
    paths = [path for resolved, path in candidates.items() if resolved.is_file()]
    if len(paths) == 1:
        return paths[0]
    if paths:
        raise ValueError(f"--ckpt_path: give one of {', '.join(map(str, paths))}")
    raise ValueError(f"--ckpt_path: required, as {run} has no {file}")


@contextmanager
def raise_out_of_memory(batch_size: int, accumulate: int, run: str) -> Iterator[None]:
    """Turns an allocator's error into OutOfMemory."""
    try:
        yield
    except RuntimeError as error:
        if not any(text in str(error).lower() for text in OUT_OF_MEMORY):
            raise
        raise OutOfMemory(batch_size, accumulate, run) from error


def run_with_smaller_batches(run: Callable[[list[str]], object], args: list[str]) -> None:
    """Calls `run(args)`; with --auto_batch again with half the batch size after each OutOfMemory.

    A run that has saved an epoch is resumed from there.
    """
    given = [argument for argument in args if argument != AUTO_BATCH]
    is_resumed = any(argument.startswith("--ckpt_path") for argument in given)
    changes: list[str] = []
    while True:
        try:
            run([*given, *changes])
            return
        except OutOfMemory as error:
            if AUTO_BATCH not in args or error.batch_size == 1:
                raise
            last, changes = error.run / "last.ckpt", error.flags
            if last.exists() and not is_resumed:
                changes = [*changes, "--ckpt_path", str(last)]
            print(f"out of memory with batch_size {error.batch_size}; retrying {error.flags[1]}")
        gc.collect()
        torch.cuda.empty_cache()


def _as_list(callbacks: Callbacks) -> list[Namespace]:
    """The settings of no, one or several callbacks as a list."""
    return [callbacks] if isinstance(callbacks, Namespace) else callbacks or []


def _create_group(hint: object, values: object) -> object:
    """The dataclass `hint` with nested values, which it checks; values if it is no dataclass."""
    if not is_dataclass(hint) or not isinstance(values, Namespace):
        return values
    hints = get_type_hints(hint)  # values of a referenced file have `__path__` as well
    create = cast(Callable[..., object], hint)
    return create(**{k: _create_group(hints[k], v) for k, v in vars(values).items() if k in hints})
