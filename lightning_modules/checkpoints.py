"""Self-describing checkpoints: written, read without pickle, verified and loaded."""

import hashlib
import inspect
import json
import pickle
import platform
import re
import zipfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any, cast, get_type_hints

import torch
from torch import Tensor, nn

from datamodules.images import content_hashes
from lightning_modules import packing
from lightning_modules.losses import LOSSES

FORMAT = 3
KEY = "consilium"
RECORDED_PACKAGES = (
    "consilium", "torch", "torchvision", "lightning", "timm", "albumentations", "numpy",
)  # fmt: skip
REGISTRY: dict[str, type[nn.Module]] = {}  # classes that can be loaded, by name
IMPORT_HINT = "import the module of a class of your own first: consilium --import MODULE ..."
NETWORK_ARGUMENTS = ("backbone", "backbone_args", "head", "trunks")
TRAINING_ARGUMENTS = ("optimizer", "lr_scheduler", "fine_tuning", "loss")
#: backbone_args that do not change predictions, beside those of dropout
NEUTRAL_ARGUMENTS = ("grad_checkpointing", "channels_last", "compile", "commercial_only")


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message names the file and what is wrong."""


@dataclass(frozen=True)
class Block:
    """The part of a checkpoint that describes it; plain values only."""

    module: str  # name of the class in `REGISTRY`
    init_args: dict[str, Any]  # of its constructor, config dataclasses as dicts
    class_names: list[str]  # in the order of the logits
    preprocess: dict[str, Any]  # empty if trained without an ImageDataModule
    manifest_digest: str  # of the manifest it was trained on
    train_ids: Tensor  # 64-bit hashes of the contents of the training images
    metrics: dict[str, float]  # of val
    measured_weights: str  # hash of the weights that `metrics` were measured on
    weights: str  # hash of the weights in this file
    epoch: int  # completed epochs
    versions: dict[str, str]  # of packages, at the time of writing
    # channels that remain after pruning (`pruning.structure.Structure`); empty: all
    structure: dict[str, Any] = field(default_factory=dict)
    # those of the images that the epoch was selected on
    val_ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    format: int = FORMAT


def register(cls: type[nn.Module]) -> None:
    """Lets checkpoints name a class; ValueError if they know another class by that name."""
    known = REGISTRY.get(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        other = f"in checkpoints this name means {known.__module__}.{known.__qualname__}"
        raise ValueError(f"{cls.__module__}.{cls.__qualname__}: {other}; rename the class")
    REGISTRY[cls.__name__] = cls


def constructor_arguments(module: nn.Module, frame: FrameType | None) -> dict[str, Any]:
    """Arguments that create `module` again, given the frame of a constructor that is running.

    They are those of the constructor of its class, which may have called that of `frame`. Config
    dataclasses become dicts.
    """
    arguments: dict[str, Any] = {}
    while frame is not None:
        names, positional, keywords, values = inspect.getargvalues(frame)
        if not names or values[names[0]] is not module:
            break
        if values.get(positional or ""):
            raise ValueError(f"{type(module).__name__}: pass its arguments by name")
        arguments = {name: values[name] for name in names[1:]} | values.get(keywords or "", {})
        frame = frame.f_back
    return plain_values(arguments)


def require_plain(module: str, arguments: dict[str, Any]) -> None:
    """ValueError if an argument could not be read from a checkpoint, which holds plain values."""
    for name, value in arguments.items():
        try:
            json.dumps(value)
        except TypeError as error:
            reason = f"is not a plain value, which checkpoints are limited to ({error})"
            raise ValueError(f"{module}: its argument {name} {reason}") from None


def plain_values(arguments: dict[str, Any]) -> dict[str, Any]:
    """Constructor arguments with config dataclasses as dicts."""
    return {
        name: asdict(value) if is_dataclass(value) and not isinstance(value, type) else value
        for name, value in arguments.items()
    }


def weights_hash(state: dict[str, Tensor]) -> str:
    """SHA-256 of the names, shapes, types and bytes of a state dict."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def package_versions() -> dict[str, str]:
    """Versions of the packages that affect the predictions of a checkpoint."""
    return {name: version(name) for name in RECORDED_PACKAGES}


def environment() -> dict[str, object]:
    """Date, versions and hardware of this process, for a report."""
    gpus = [torch.cuda.get_device_name(at) for at in range(torch.cuda.device_count())]
    return {
        "date": date.today().isoformat(),
        "python": platform.python_version(),
        "libraries": ", ".join(f"{name} {number}" for name, number in package_versions().items()),
        "machine": f"{platform.system()} {platform.machine()}, {torch.get_num_threads()} threads",
        "GPUs": ", ".join(gpus) or "none",
    }


def write_block(checkpoint: dict[str, Any], **values: Any) -> None:
    """Adds the block to the content of a checkpoint that has its `state_dict`."""
    weights = weights_hash(checkpoint["state_dict"])
    checkpoint[KEY] = asdict(Block(weights=weights, versions=package_versions(), **values))


def read(path: str | Path, mmap: bool = False) -> tuple[Block, dict[str, Tensor]]:
    """The block and the state dict of a checkpoint; with `mmap` weights are read when used."""
    content = read_content(Path(path), mmap)
    return parse_block(content, str(path)), content["state_dict"]


def parse_block(content: dict[str, Any], path: str) -> Block:
    """The verified block of the content of a checkpoint; `path` is for messages."""
    values = content.get(KEY)
    if not isinstance(values, dict):
        problem = f"not a Consilium checkpoint (it has no {KEY!r} block)"
    elif values.get("format") != FORMAT:
        problem = f"block format {values.get('format')!r}, this version reads {FORMAT}"
    elif differing := sorted(set(values) ^ {f.name for f in fields(Block)}):
        problem = f"missing or unknown fields in the block: {differing}"
    elif not isinstance(values["structure"], dict):
        problem = f"structure is a {type(values['structure']).__name__}"
    elif values["module"] not in REGISTRY:
        known = ", ".join(sorted(REGISTRY))
        problem = f"module {values['module']!r} is not one of {known}; {IMPORT_HINT}"
    else:
        return Block(**values)
    raise CheckpointError(f"{path}: {problem}")


def load(path: str | Path, mmap: bool = False) -> tuple[nn.Module, Block]:
    """The module of a checkpoint in eval mode, without its config and without network access."""
    block, state = read(path, mmap)
    if weights_hash(state) != block.weights:
        raise CheckpointError(f"{path}: the weights do not have the hash that the file states")
    module = build_module(block)
    try:
        module.load_state_dict(state, assign=mmap)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: {' '.join(str(error).split())}") from None
    return module.eval(), block


def build_module(block: Block) -> nn.Module:
    """An untrained module as the block describes it; nothing is downloaded or imported."""
    cls, arguments = REGISTRY[block.module], dict(block.init_args)
    if "pretrained" in arguments:
        arguments["pretrained"] = False
    if arguments.get("loss", {}).get("name") not in LOSSES:
        arguments.pop("loss", None)  # a user's own loss, which only training needs
    types = argument_types(cls)
    groups = {name: values for name, values in arguments.items() if is_dataclass(types.get(name))}
    arguments |= {name: types[name](**values) for name, values in groups.items()}
    module: Any = cls(**arguments)
    module.apply_structure(block.structure)
    return cast(nn.Module, module)


def argument_types(cls: type) -> dict[str, Any]:
    """Types of the constructor arguments of a class, including those that it passes to a parent."""
    constructors: list[Any] = [vars(c)["__init__"] for c in cls.__mro__ if "__init__" in vars(c)]
    return {k: v for init in reversed(constructors) for k, v in get_type_hints(init).items()}


def packed_checkpoint(block: Block, state: dict[str, Tensor]) -> bytes:
    """A packed file of the weights in the precision of `packing.to_stored_precision`."""
    stored = packing.to_stored_precision(state)
    restored = {name: tensor.to(state[name].dtype) for name, tensor in stored.items()}
    values = asdict(replace(block, weights=weights_hash(restored)))
    return packing.to_bytes(restored, values, {name: values.pop(name) for name in packing.IDS})


def inference_checkpoint(block: Block, state: dict[str, Tensor]) -> dict[str, Any]:
    """The content of a checkpoint without training state, for Lightning's test and predict."""
    loops = {"epoch": block.epoch, "global_step": 0}
    versions = {"pytorch-lightning_version": version("lightning")}
    return {KEY: asdict(block), "state_dict": state, **versions, **loops}


def refuse_trained_samples(block: Block, paths: Sequence[str], split: str, source: str) -> None:
    """CheckpointError, which names `source`, if images were trained on, or test chose the epoch.

    Images are compared by the contents of their files, so that names do not matter.
    """
    hashes = torch.from_numpy(content_hashes(list(paths)))
    used = {"training": block.train_ids}
    used |= {"val": block.val_ids} if split == "test" else {}
    for kind, used_hashes in used.items():
        is_used = torch.isin(hashes, used_hashes)
        if count := int(is_used.sum()):
            first = paths[int(is_used.nonzero()[0])]
            reason = f"{count} of the samples to be tested are {kind} samples of this checkpoint"
            remedy = f"leave such files out, as {first}, by a CSV of ids: data.init_args.exclude"
            raise CheckpointError(f"{source}: {reason}; {remedy}")


def require_same_network(block: Block, module: str, init_args: dict[str, Any]) -> None:
    """CheckpointError if the weights belong to another network than a config describes."""
    if block.module != module:
        raise CheckpointError(f"checkpoint is of {block.module}, the config has {module}")
    for name in NETWORK_ARGUMENTS:
        if name in block.init_args and name in init_args:
            theirs, ours = (_relevant(args[name]) for args in (block.init_args, init_args))
            if theirs != ours:
                raise CheckpointError(f"checkpoint has {name} {theirs}, the config has {ours}")


def require_same_training(block: Block, init_args: dict[str, Any]) -> None:
    """CheckpointError if a resume has other settings: an optimizer restores its own rates."""
    theirs, ours = (_training_settings(arguments) for arguments in (block.init_args, init_args))
    if differing := differing_settings(theirs, ours):
        reason = "a resume continues with the same settings; start a new fit to change them"
        start = "callbacks.WarmStart starts it from these weights"
        raise CheckpointError(f"checkpoint: trained {differing}: {reason} ({start})")


def differing_settings(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Settings of a checkpoint unlike those of a config, among those that both have."""
    names = [name for name in ours if name in theirs and theirs[name] != ours[name]]
    return "; ".join(f"with {n} {theirs[n]!r}, the config has {ours[n]!r}" for n in names)


def read_content(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of an ordinary or packed checkpoint file with weights; no code in it is run."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.name.endswith(packing.SUFFIX):
        values, state = packing.read(path)
        return {KEY: values, "state_dict": state}
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: truncated, or not a checkpoint (no zip archive of torch)")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        code = f" ({name[1]})" if name else ""
        raise CheckpointError(f"{path}: refused, it has code{code}, not only weights") from None
    except (RuntimeError, OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: damaged ({' '.join(str(error).split())[:200]})") from None
    if not isinstance(content, dict) or "state_dict" not in content:
        raise CheckpointError(f"{path}: contains no weights (no 'state_dict')")
    return content


def _training_settings(init_args: dict[str, Any]) -> dict[str, Any]:
    """The settings of `TRAINING_ARGUMENTS` by dotted name."""
    groups = {n: init_args[n] for n in TRAINING_ARGUMENTS if isinstance(init_args.get(n), dict)}
    return {f"{name}.{key}": v for name, group in groups.items() for key, v in group.items()}


def _relevant(argument: object) -> object:
    """An argument without the parts that do not change predictions."""
    if not isinstance(argument, dict):
        return argument or {}
    return {k: v for k, v in argument.items() if k not in NEUTRAL_ARGUMENTS and "drop" not in k}
