"""What a training verb is refused for before anything is computed, and the checkpoint it takes."""

from collections.abc import Iterable
from importlib import import_module
from pathlib import Path

from jsonargparse import Namespace

from lightning_modules.ensemble import EnsembleModule
from lightning_modules.exact import FIGURES

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


def require_kept(callbacks: list[Namespace] | Namespace | None) -> None:
    """An error when no callback would keep anything of what is found."""
    listed = [callbacks] if isinstance(callbacks, Namespace) else callbacks or []
    given = {callback.class_path.rpartition(".")[2] for callback in listed}
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
    require_known(config.early_stopping.monitor, config.model.class_path)


def require_known(monitor: str, model: str) -> None:
    """An error when a figure of val is watched that our modules do not have."""
    known = [f"val/{name}" for name in FIGURES]
    ours = model.startswith("lightning_modules.") and monitor.startswith("val/")
    if ours and monitor not in known:
        raise ValueError(
            f"--early_stopping.monitor {monitor!r}: the figures of val are {', '.join(known)}"
        )


def is_council(model: Namespace) -> bool:
    """Whether the class of a config's model is a council, whose members have their own files."""
    module, _, name = model.class_path.rpartition(".")
    return issubclass(getattr(import_module(module), name), EnsembleModule)


def best_of(run: Path, configs: Iterable[object]) -> Path:
    """best.ckpt of the run folder, or of the folder that a config was taken from."""
    folders = [run, *(Path(str(config)).parent for config in configs)]
    found = {(folder / "best.ckpt").resolve(): folder / "best.ckpt" for folder in folders}
    there = [path for whole, path in found.items() if whole.is_file()]
    if len(there) == 1:
        return there[0]
    if there:
        raise ValueError(f"--ckpt_path: {' or '.join(map(str, there))}? say which")
    raise ValueError(f"--ckpt_path: give one; {run} holds no best.ckpt")
