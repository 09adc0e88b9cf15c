"""Checks before a run starts, its default checkpoint, and smaller batches when memory is full."""

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import is_dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import cast, get_type_hints

import torch
from jsonargparse import Namespace

from callbacks.checkpoint import BestAndLastCheckpoint
from callbacks.writers import HistoryWriter, PredictionWriter, ResultsWriter
from consilium.config_files import source_file
from lightning_modules import backbones
from lightning_modules.base import EPOCH_METRICS
from lightning_modules.checkpoints import argument_types
from lightning_modules.classifier import ImageClassifier

Callbacks = list[Namespace] | Namespace | None
WRITERS = (BestAndLastCheckpoint, HistoryWriter, PredictionWriter, ResultsWriter)
AUTO_BATCH = "--auto_batch"
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "not enough memory")


class OutOfMemory(ValueError):
    """A batch that did not fit into memory; `flags` halve it at the same effective batch size."""

    def __init__(self, batch_size: int, accumulate: int, run: str) -> None:
        self.flags = ["--data.init_args.batch_size", str(max(1, batch_size // 2)),
                      "--trainer.accumulate_grad_batches", str(accumulate * 2)]  # fmt: skip
        self.batch_size, self.run = batch_size, Path(run)
        super().__init__(
            f"out of memory with batch_size {batch_size}; for the same effective batch size give "
            f"{' '.join(self.flags)} ({AUTO_BATCH} does so automatically); "
            "backbone_args {grad_checkpointing: true} also saves memory"
        )


def refuse_used_run_folder(folder: Path) -> None:
    """Raises ValueError if a fit would overwrite another run."""
    if any((folder / name).exists() for name in ("results.json", "results.val.json")):
        content = "a finished run;"
    elif (folder / "last.ckpt").exists():
        content = f"an unfinished run; resume it with --ckpt_path {folder}/last.ckpt,"
    else:
        return
    raise ValueError(f"--run {folder}: contains {content} give another --run, or remove the folder")


def require_result_callbacks(callbacks: Callbacks) -> None:
    """Raises ValueError if no callback would write a checkpoint, a history or results."""
    if not any(issubclass(resolve_name(item.class_path), WRITERS) for item in _as_list(callbacks)):
        reason = "none of them writes results; give --config configs/base.yaml first"
        raise ValueError(f"trainer.callbacks: {reason}")


def check_fit_config(config: Namespace) -> None:
    """Raises ValueError if a fit would train nothing, or follow a metric that is not computed."""
    for name in ("max_epochs", "max_steps"):
        if config.trainer[name] == 0:
            raise ValueError(f"--trainer.{name} 0: must be at least 1, or -1 for no limit")
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
    for item in (config.model, config.data, *_as_list(config.trainer.callbacks)):
        cls = resolve_name(item.class_path)
        hints = argument_types(cls)
        arguments = vars(item.init_args) if "init_args" in item else {}
        for name, values in arguments.items():
            try:
                _create_group(hints.get(name), values)
                if name == "backbone" and issubclass(cls, ImageClassifier):
                    backbones.input_size(values)  # an error for an unknown name
            except ValueError as error:
                file = source_file(files, name, values if isinstance(values, str) else None)
                raise ValueError(f"{file}: {error}") from error


def monitored_metrics(config: Namespace) -> dict[str, str]:
    """The metrics that a fit follows, by the argument that names each."""
    monitors = {"early_stopping.monitor": config.early_stopping.monitor}
    for callback in _as_list(config.trainer.callbacks):
        monitors[f"{callback.class_path}: monitor"] = callback.get("init_args.monitor")
    if config.model.get("init_args.lr_scheduler.name") == "plateau":
        monitors["lr_scheduler.monitor"] = config.model.init_args.lr_scheduler.monitor
    return {argument: metric for argument, metric in monitors.items() if metric}


def default_checkpoint(run: Path, configs: Iterable[object]) -> Path:
    """best.ckpt of the run folder, or of the folder of a config file."""
    folders = [run, *(Path(str(config)).parent for config in configs if config is not None)]
    candidates = {(folder / "best.ckpt").resolve(): folder / "best.ckpt" for folder in folders}
    paths = [path for resolved, path in candidates.items() if resolved.is_file()]
    if len(paths) == 1:
        return paths[0]
    if paths:
        raise ValueError(f"--ckpt_path: give one of {', '.join(map(str, paths))}")
    raise ValueError(f"--ckpt_path: required, as {run} has no best.ckpt")


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
    """Calls `run(args)`; with --auto_batch again with half the batch while memory is exceeded.

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
    return [callbacks] if isinstance(callbacks, Namespace) else callbacks or []


def _create_group(hint: object, values: object) -> object:
    """The dataclass of a type hint with nested values, or the values if it is not a dataclass."""
    if not is_dataclass(hint) or not isinstance(values, Namespace):
        return values
    hints = get_type_hints(hint)  # values of a referenced file have `__path__` as well
    create = cast(Callable[..., object], hint)
    return create(**{k: _create_group(hints[k], v) for k, v in vars(values).items() if k in hints})
