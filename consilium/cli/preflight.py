"""What a training verb is refused for before anything is computed, and the checkpoint it takes."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from jsonargparse import Namespace

from lightning_modules.base import FIGURES
from lightning_modules.ensemble import EnsembleModule

Callbacks = list[Namespace] | Namespace | None
KEEPING = {"BestAndLast", "History", "Predictions", "Record"}  # the callbacks of configs/base.yaml


def refuse_used(folder: Path) -> None:
    """An error when a fit would write over another run."""
    if (folder / "results.json").exists():
        raise ValueError(f"--run {folder}: holds a finished run; give another --run, or remove it")
    if (folder / "last.ckpt").exists():
        raise ValueError(
            f"--run {folder}: holds an unfinished run; go on with --ckpt_path {folder}/last.ckpt, "
            "give another --run, or remove it"
        )


def listed(callbacks: Callbacks) -> list[Namespace]:
    """The callbacks of a config, which may be one alone or none."""
    return [callbacks] if isinstance(callbacks, Namespace) else callbacks or []


def require_kept(callbacks: Callbacks) -> None:
    """An error when no callback would keep anything of what is found."""
    given = {callback.class_path.rpartition(".")[2] for callback in listed(callbacks)}
    if not given & KEEPING:
        raise ValueError(
            "trainer.callbacks: none of them keeps or tells what is found; configs/base.yaml is "
            "not among the configs: give it first"
        )


def require_training(config: Namespace) -> None:
    """An error when a fit would train nothing, or stop by a figure that there will not be."""
    for name in ("max_epochs", "max_steps"):
        if config.trainer[name] == 0:
            raise ValueError(f"--trainer.{name} 0: at least 1, or -1 for no end")
    if config.model.class_path.startswith("lightning_modules."):  # others know more figures
        for name, monitor in watched(config).items():
            require_known(name, monitor)


def watched(config: Namespace) -> dict[str, str]:
    """The figures that a fit goes by, under the names of the arguments that say them."""
    found = {"early_stopping.monitor": config.early_stopping.monitor}
    for callback in listed(config.trainer.callbacks):
        found[f"{callback.class_path}: monitor"] = callback.get("init_args.monitor")
    if config.model.get("init_args.optimization.schedule") == "plateau":
        found["optimization.monitor"] = config.model.init_args.optimization.monitor
    return {name: monitor for name, monitor in found.items() if monitor}


def require_known(name: str, monitor: str) -> None:
    """An error for a figure of val that there is not, or one that is of no split at all."""
    known = [f"val/{figure}" for figure in FIGURES]
    if monitor not in known and (monitor.startswith("val/") or "/" not in monitor):
        raise ValueError(f"{name} {monitor!r}: the figures of val are {', '.join(known)}")


def is_ensemble(model: Namespace) -> bool:
    """Whether the class of a config's model is an ensemble, whose members have their own files."""
    module, _, name = model.class_path.rpartition(".")
    return issubclass(getattr(import_module(module), name), EnsembleModule)


def best_of(run: Path, configs: Iterable[object]) -> Path:
    """best.ckpt of the run folder, or of the folder that a config was taken from."""
    folders = [run, *(Path(str(config)).parent for config in configs if config is not None)]
    found = {(folder / "best.ckpt").resolve(): folder / "best.ckpt" for folder in folders}
    there = [path for whole, path in found.items() if whole.is_file()]
    if len(there) == 1:
        return there[0]
    if there:
        raise ValueError(f"--ckpt_path: {' or '.join(map(str, there))}? say which")
    raise ValueError(f"--ckpt_path: give one; {run} holds no best.ckpt")
