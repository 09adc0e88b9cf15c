"""Weights that a training begins with: out of a checkpoint, into the module and its averages."""

import pickle
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn


def content_of(path: Path) -> dict[str, Any]:
    """What a checkpoint file to start from holds; no code in it is run."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ValueError(f"start: no checkpoint at {path}") from None
    except (pickle.UnpicklingError, RuntimeError, OSError, EOFError, KeyError) as error:
        said = " ".join(str(error).split())[:100]
        raise ValueError(f"start: {path} is no checkpoint, or damaged ({said})") from None
    block = content.get("consilium", {}) if isinstance(content, dict) else None
    if not isinstance(block, dict) or "state_dict" not in content:
        raise ValueError(f"start: {path} holds no weights of a checkpoint")
    return dict(content)


def require_same_data(
    path: Path, content: dict[str, Any], trainer: L.Trainer, module: L.LightningModule
) -> None:
    """Nobody goes on from weights that may have seen what is now held out."""
    data, block = vars(trainer).get("datamodule"), content.get("consilium", {})
    if data is None or not hasattr(data, "manifest"):
        return
    digest = data.manifest.digest()
    if block.get("manifest_digest") != digest:
        raise ValueError(f"{path}: was trained on another manifest; its splits may leak into these")
    names = list(getattr(module, "class_names", []))
    if block.get("class_names") != names:
        raise ValueError(f"{path}: has classes {block.get('class_names')}, not {names}")


def put(path: Path, content: dict[str, Any], trainer: L.Trainer, module: L.LightningModule) -> None:
    """Weights of a checkpoint of the same data into the module and its averages.

    The module remembers what they were made of, where that is more than it trains on itself.
    """
    require_same_data(path, content, trainer, module)
    block = content.get("consilium", {})
    if hasattr(module, "learnt") and "train_ids" in block:
        module.learnt = block["train_ids"]
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from None
    for average in averages(trainer):
        average.load_state_dict(content["state_dict"])


def averages(trainer: L.Trainer) -> list[nn.Module]:
    """The averaged copies of the module that Lightning's callbacks keep."""
    return [kept.module for kept in _averaged(trainer)]


def forget_averages(trainer: L.Trainer) -> None:
    """Averages begin anew with the weights that are in them now."""
    for kept in _averaged(trainer):
        kept.n_averaged.zero_()


def size(module: nn.Module) -> int:
    """How many numbers the module's parameters have."""
    return sum(parameter.numel() for parameter in module.parameters())


def zeros(module: nn.Module) -> float:
    """Share of all numbers of the module's parameters that are 0."""
    parameters: list[Tensor] = [p.detach() for p in module.parameters()]
    none = sum(p.numel() - int(p.count_nonzero()) for p in parameters)
    return none / size(module)


def _averaged(trainer: L.Trainer) -> list[Any]:
    callbacks: list[L.Callback] = vars(trainer)["callbacks"]
    kept = [vars(c)["_average_model"] for c in callbacks if isinstance(c, WeightAveraging)]
    return [model for model in kept if model is not None]
