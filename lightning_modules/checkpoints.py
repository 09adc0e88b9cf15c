"""The self-describing block of a checkpoint: written, read without pickle, verified."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar, cast, get_type_hints

import torch
from torch import Tensor, nn

from lightning_modules import packing

FORMAT = 1
KEY = "consilium"
PACKAGES = ("consilium", "torch", "lightning", "timm", "numpy")
LATER = {"structure", "val_ids"}  # files from before there were any have none
REGISTRY: dict[str, type[nn.Module]] = {}

Module = TypeVar("Module", bound=type[nn.Module])


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Block:
    """What a checkpoint says of itself; plain values only.

    Args:
        module: name of the class in our registry.
        init_args: its constructor's arguments, groups of settings as dicts.
        class_names: the classes in the order of the logits.
        preprocess: the Preprocess as a dict.
        manifest_digest: digest of the manifest it was trained on.
        train_ids: 64-bit hashes of the training ids.
        metrics: figures of the val split measured on these weights.
        measured_weights: hash of the weights that the figures were measured on.
        weights: hash of the weights in this file.
        epoch: epochs completed.
        versions: package versions at the time of writing.
        format: version of this block.
        structure: the channels that pruning has left (`structure.Kept`); empty: all.
        val_ids: 64-bit hashes of the ids that the epoch was chosen by.
    """

    module: str
    init_args: dict[str, Any]
    class_names: list[str]
    preprocess: dict[str, Any]
    manifest_digest: str
    train_ids: Tensor
    metrics: dict[str, float]
    measured_weights: str
    weights: str
    epoch: int
    versions: dict[str, str]
    format: int = FORMAT
    structure: dict[str, Any] = field(default_factory=dict)
    val_ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))


def register(cls: Module) -> Module:
    """Makes a module class known to `load` by its name."""
    REGISTRY[cls.__name__] = cls
    return cls


def plain(arguments: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments as plain values: groups of settings become dicts."""
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in arguments.items()
        if name not in ("self", "__class__")
    }


def weights_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 over names, shapes, types and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def id_hashes(ids: Iterable[str]) -> Tensor:
    """Sorted 64-bit hashes of sample ids."""
    digests = (hashlib.blake2b(i.encode(), digest_size=8).digest() for i in ids)
    return torch.tensor(
        sorted(int.from_bytes(d, "big", signed=True) for d in digests), dtype=torch.int64
    )


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a checkpoint means."""
    return {name: version(name) for name in PACKAGES}


def write_block(checkpoint: dict[str, Any], **facts: Any) -> None:
    """Adds the block to a checkpoint that is being saved, once its weights are in it."""
    weights = weights_hash(checkpoint["state_dict"])
    checkpoint[KEY] = asdict(Block(weights=weights, versions=versions(), **facts))


def read(path: str | Path, mapped: bool = False) -> tuple[Block, dict[str, Tensor]]:
    """The block and the weights of a checkpoint file; no code in the file is run.

    Mapped weights stay in the file until they are used, and take no memory of their own.
    """
    content = content_of(Path(path), mapped)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: not a Consilium checkpoint (it holds no dictionary)")
    return read_block(content, str(path)), content["state_dict"]


def read_block(content: dict[str, Any], path: str) -> Block:
    """The block of a checkpoint's content, checked; `path` is for the message."""
    said = content.get(KEY)
    known = {f.name for f in fields(Block)}
    if not isinstance(said, dict):
        raise CheckpointError(f"{path}: not a Consilium checkpoint (it has no {KEY!r} block)")
    if said.get("format") != FORMAT:
        raise CheckpointError(f"{path}: block format {said.get('format')!r}, this reads {FORMAT}")
    if set(said) | LATER != known:
        raise CheckpointError(f"{path}: block fields {sorted(set(said) ^ known)} are off")
    if not isinstance(said.get("structure", {}), dict):
        raise CheckpointError(f"{path}: structure is a {type(said['structure']).__name__}")
    if said["module"] not in REGISTRY:
        raise CheckpointError(
            f"{path}: module {said['module']!r} is not one of {', '.join(sorted(REGISTRY))}"
        )
    return Block(**said)


def load(path: str | Path, mapped: bool = False) -> tuple[nn.Module, Block]:
    """The module of a checkpoint in eval mode, without its YAML and without network."""
    block, state = read(path, mapped)
    if weights_hash(state) != block.weights:
        raise CheckpointError(f"{path}: the weights do not have the hash that the file states")
    module = build(block)
    try:
        module.load_state_dict(state, assign=mapped)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from None
    return module.eval(), block


def build(block: Block) -> nn.Module:
    """An untrained module as the block describes it; nothing is fetched."""
    cls = REGISTRY[block.module]
    hints = get_type_hints(cls.__init__)
    groups = {
        name: hints[name](**value) if is_dataclass(hints[name]) else value
        for name, value in block.init_args.items()
    }
    module = cls(**{**groups, "pretrained": False})
    if block.structure:
        cast(Any, module).restructure(block.structure)
    return module


def packed(block: Block, state: dict[str, Tensor]) -> bytes:
    """A packed checkpoint: its weights are those of `packing.stored`, as is its hash."""
    kept = {name: t.to(state[name].dtype) for name, t in packing.stored(state).items()}
    said = asdict(replace(block, weights=weights_hash(kept)))
    return packing.dump(state, said, {name: said.pop(name) for name in packing.IDS})


def content(block: Block, state: dict[str, Tensor]) -> dict[str, Any]:
    """A checkpoint without a training's state, as Lightning's test and predict take it."""
    block = replace(block, weights=weights_hash(state))
    loops = {"epoch": block.epoch, "global_step": 0}
    known = {"pytorch-lightning_version": version("lightning"), **loops}
    return {KEY: asdict(block), "state_dict": state, **known}


def refuse_seen(block: Block, ids: Iterable[str], split: str, where: str) -> None:
    """An error when any of `ids` was trained on, or in a test split chose the epoch."""
    hashes = id_hashes(ids)
    learnt = {"training": block.train_ids} | ({"val": block.val_ids} if split == "test" else {})
    for kind, known in learnt.items():
        seen = torch.isin(hashes, known).sum().item()
        if seen:
            raise CheckpointError(
                f"{where}: {seen} of the samples to be tested are {kind} samples of this checkpoint"
            )


def content_of(path: Path, mapped: bool = False) -> object:
    """What a checkpoint file holds, an ordinary or a packed one; no code in it is run."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if packing.is_packed(path):
        said, state = packing.read(path)
        return {KEY: said, "state_dict": state}
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: truncated, or not a checkpoint (no zip archive of torch)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f" ({found[1]})" if found else ""
        raise CheckpointError(f"{path}: refused, it holds code{what}, not only weights") from None
    except (RuntimeError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from None
