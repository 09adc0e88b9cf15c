"""Self-describing checkpoints: written, read without pickle, verified and loaded.

Beside its state dict a checkpoint has a block: metadata that are enough to rebuild the network.
"""

import hashlib
import inspect
import json
import math
import pickle
import platform
import re
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from datetime import date
from importlib.metadata import version
from itertools import count
from pathlib import Path
from types import FrameType, NoneType
from typing import Any, cast, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from datamodules.images import content_hashes
from datamodules.preprocess import Preprocess
from evaluation.files import DIGEST, json_digest, naming, require_digest, require_types
from lightning_modules import packing
from lightning_modules.losses import LOSSES

FORMAT = 5
KEY = "consilium"
RECORDED_PACKAGES = (
    "consilium", "torch", "torchvision", "lightning", "timm", "albumentations", "numpy",
)  # fmt: skip
PLAIN = (dict, list, tuple, str, int, float, NoneType, Tensor)  # types of the values in a block
MAX_VALUES = 1_000_000  # in a block, however often it repeats itself
MAX_LAYERS = 50_000  # of a network; the largest of timm have 5,000
MAX_SETTING = 100_000  # a number in backbone_args, such as a depth or a width
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
    """The metadata of a checkpoint, stored under `KEY` beside its state dict; plain values only."""

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
    # 64-bit hashes of the contents of the validation images
    val_ids: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    format: int = FORMAT
    digest: str = ""  # of all other fields, and so of all that decides a prediction


def register(cls: type[nn.Module]) -> None:
    """Adds a module class to `REGISTRY`; ValueError if another class has its name there."""
    known = REGISTRY.get(cls.__name__, cls)
    if (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
        other = f"in checkpoints this name means {known.__module__}.{known.__qualname__}"
        raise ValueError(f"{cls.__module__}.{cls.__qualname__}: {other}; rename the class")
    REGISTRY[cls.__name__] = cls


def constructor_arguments(module: nn.Module, frame: FrameType | None) -> dict[str, Any]:
    """Constructor arguments that create `module` again, by name; config dataclasses as dicts.

    `frame` is that of a running `__init__` of `module`, of its own class or of a base class.
    ValueError if arguments were passed as `*args`.
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
    """ValueError if an argument of class `module` is not a plain value, as checkpoints need."""
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
        if tensor.numel():  # an empty one may have no stride
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
    """Adds a block of `values` to the content of a checkpoint, which has its `state_dict`."""
    weights = weights_hash(checkpoint["state_dict"])
    block = Block(weights=weights, versions=package_versions(), **values)
    checkpoint[KEY] = block_with_digest(asdict(block))


def block_with_digest(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of the values of a block with a new digest of them."""
    return {**values, DIGEST: _block_digest(values)}


def _block_digest(values: dict[str, Any]) -> str:
    """SHA-256 of the values of a block without its digest; ids (tensors) by their hash."""
    return json_digest(values, lambda ids: weights_hash({"ids": ids}))


def read(
    path: str | Path, mmap: bool = False, verify: bool = False
) -> tuple[Block, dict[str, Tensor]]:
    """The block and the state dict of a checkpoint.

    With `mmap` weights are read when used. With `verify` they must be finite and have their hash.
    """
    content = read_content(Path(path), mmap)
    parse = verified_block if verify else parse_block
    return parse(content, str(path)), content["state_dict"]


def verified_block(content: dict[str, Any], path: str) -> Block:
    """`parse_block`; CheckpointError unless the weights are finite and have the block's hash."""
    block = parse_block(content, path)
    if weights_hash(content["state_dict"]) != block.weights:
        raise CheckpointError(f"{path}: the weights do not have the hash that the file states")
    require_finite(content["state_dict"], path)
    return block


def require_finite(state: dict[str, Tensor], path: str) -> None:
    """CheckpointError if a weight is NaN or infinite, as after a training that diverged."""
    for name, tensor in state.items():
        if tensor.is_floating_point() and tensor.numel():
            values = tensor if tensor.itemsize > 1 else tensor.float()  # of 8 bits
            if not all(math.isfinite(value) for value in values.aminmax()):
                raise CheckpointError(f"{path}: its weight {name!r} has NaN or infinity")


def parse_block(content: dict[str, Any], path: str) -> Block:
    """The block in the content of a checkpoint; CheckpointError naming `path` if it is invalid."""
    values = content.get(KEY)
    with naming(path, CheckpointError):
        if not isinstance(values, dict):
            raise ValueError(f"not a Consilium checkpoint (it has no {KEY!r} block)")
        _require_plain_block(values)
        if values.get("format") != FORMAT:
            reason = f"block format {values.get('format')!r}, this version reads {FORMAT}"
            raise ValueError(f"{reason}; train it again, or use the version that wrote it")
        if differing := sorted(set(values) ^ {f.name for f in fields(Block)}):
            raise ValueError(f"missing or unknown fields in the block: {differing}")
        _require_valid_values(values)
        require_digest(values, _block_digest(values))
        if values["module"] not in REGISTRY:
            known = ", ".join(sorted(REGISTRY))
            raise ValueError(f"module {values['module']!r} is not one of {known}; {IMPORT_HINT}")
        return Block(**values)


def _require_plain_block(values: dict[str, Any]) -> None:
    """ValueError unless a block is small and has plain values only: JSON's, tuples and tensors."""
    for number, value in enumerate(_nested_values(values)):
        if not isinstance(value, PLAIN) or number > MAX_VALUES:
            what = f"more than {MAX_VALUES} values" if number > MAX_VALUES else type(value).__name__
            raise ValueError(f"the block contains {what}, not only a few plain values")


def _nested_values(value: object) -> Iterator[object]:
    """A value and all values within it; not recursive, as lists may contain each other."""
    pending = [value]
    while pending:
        value = pending.pop()
        yield value
        if isinstance(value, dict):
            pending += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            pending += value


def _require_valid_values(values: dict[str, Any]) -> None:
    """ValueError unless the values of a block have the types of its fields and are consistent."""
    require_types(values, get_type_hints(Block))
    for name in packing.IDS:
        ids = values[name]
        if ids.dtype != torch.int64 or ids.ndim != 1 or not _is_plain_tensor(ids):
            raise ValueError(f"{name!r} is not a list of whole numbers")
    names, arguments = values["class_names"], values["init_args"]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"'class_names' is {str(names)[:60]}; each class must have its own name")
    if (own := arguments.get("class_names", names)) != names:
        raise ValueError(f"'class_names' is {names}, but its network has {own}")
    for value in _nested_values(arguments.get("backbone_args")):
        if isinstance(value, int | float) and not abs(value) <= MAX_SETTING:
            raise ValueError(f"{value:g} in backbone_args; allowed are at most {MAX_SETTING}")
    if values["preprocess"]:
        Preprocess.from_dict(values["preprocess"])


def load(path: str | Path, mmap: bool = False) -> tuple[nn.Module, Block]:
    """The module of a checkpoint in eval mode, without its config and without network access."""
    block, state = read(path, mmap, verify=True)
    with naming(path, CheckpointError):
        _require_size(block, Path(path).stat().st_size)
        module = build_module(block)
        module.load_state_dict(state, assign=mmap)
    return module.eval(), block


def _require_size(block: Block, file_size: int) -> None:
    """ValueError if the network of a block needs much more memory than its file has weights."""
    with torch.device("meta"):
        net = build_module(block)
    needed = sum(t.numel() * t.itemsize for t in (*net.parameters(), *net.buffers()))
    if needed > packing.memory_limit(file_size):
        raise ValueError(f"its network takes {needed:,} bytes, its file has only {file_size:,}")


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
    with _limited_layers():
        module: Any = cls(**arguments)
    module.apply_structure(block.structure)
    return cast(nn.Module, module)


@contextmanager
def _limited_layers() -> Iterator[None]:
    """Context in which creating more than `MAX_LAYERS` layers is a ValueError."""
    numbers = count()

    def count_layer(*_: object) -> None:
        if next(numbers) > MAX_LAYERS:
            raise ValueError(f"its network has more than {MAX_LAYERS} layers")

    hook = register_module_module_registration_hook(count_layer)
    try:
        yield
    finally:
        hook.remove()


def argument_types(cls: type) -> dict[str, Any]:
    """Types of the constructor arguments of a class, including those that it passes to a parent."""
    constructors: list[Any] = [vars(c)["__init__"] for c in cls.__mro__ if "__init__" in vars(c)]
    return {k: v for init in reversed(constructors) for k, v in get_type_hints(init).items()}


def packed_checkpoint(block: Block, state: dict[str, Tensor]) -> bytes:
    """The bytes of a packed file (see `packing`) of the block and the weights in float16."""
    stored = packing.to_stored_precision(state)
    restored = {name: tensor.to(state[name].dtype) for name, tensor in stored.items()}
    values = block_with_digest(asdict(replace(block, weights=weights_hash(restored))))
    return packing.to_bytes(restored, values, {name: values.pop(name) for name in packing.IDS})


def inference_checkpoint(block: Block, state: dict[str, Tensor]) -> dict[str, Any]:
    """The content of a checkpoint without training state, for Lightning's test and predict."""
    loops = {"epoch": block.epoch, "global_step": 0}
    versions = {"pytorch-lightning_version": version("lightning")}
    return {KEY: block_with_digest(asdict(block)), "state_dict": state, **versions, **loops}


def refuse_trained_samples(block: Block, paths: Sequence[str], split: str, source: str) -> None:
    """CheckpointError naming `source` if images are training samples of the checkpoint.

    With `split` test, also if they are its validation samples. Images are compared by the contents
    of their files, so that names do not matter.
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
            theirs, ours = (_without_neutral(args[name]) for args in (block.init_args, init_args))
            if theirs != ours:
                raise CheckpointError(f"checkpoint has {name} {theirs}, the config has {ours}")


def require_same_training(block: Block, init_args: dict[str, Any]) -> None:
    """CheckpointError if a resumed fit has another optimizer, schedule, freezing or loss.

    The optimizer restores the learning rates of the checkpoint, so that new ones have no effect.
    """
    theirs, ours = (_training_settings(arguments) for arguments in (block.init_args, init_args))
    if differing := differing_settings(theirs, ours):
        reason = "a resume continues with the same settings; start a new fit to change them"
        start = "callbacks.WarmStart starts it from these weights"
        raise CheckpointError(f"checkpoint: trained {differing}: {reason} ({start})")


def differing_settings(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """Text that lists the settings with other values in a checkpoint than in a config, or "".

    Settings that only one of them has are left out.
    """
    names = [name for name in ours if name in theirs and theirs[name] != ours[name]]
    return "; ".join(f"with {n} {theirs[n]!r}, the config has {ours[n]!r}" for n in names)


def read_content(path: Path, mmap: bool = False) -> dict[str, Any]:
    """The content of an ordinary or packed checkpoint file with weights; no code in it is run."""
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint")
    with naming(path, CheckpointError):
        if path.name.endswith(packing.SUFFIX):
            values, weights = packing.read(path)
            return {KEY: values, "state_dict": weights}
        content = _read_archive(path, mmap)
        state = content.get("state_dict") if isinstance(content, dict) else None
        if not isinstance(content, dict) or not isinstance(state, dict):
            raise ValueError("contains no weights (no 'state_dict')")
        for name, tensor in state.items():
            is_plain = isinstance(name, str) and _is_plain_tensor(tensor)
            if not is_plain or tensor.nbytes > path.stat().st_size:
                raise ValueError(f"{str(name)[:60]!r} in its 'state_dict' is no plain tensor")
        return content


def _read_archive(path: Path, mmap: bool) -> object:
    """The result of torch.load without code; CheckpointError for a damaged or unsafe file."""
    if not zipfile.is_zipfile(path):
        raise CheckpointError(f"{path}: truncated, or not a checkpoint (no zip archive of torch)")
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            is_stored = all(record.compress_type == zipfile.ZIP_STORED for record in records)
            if not is_stored or sum(r.file_size for r in records) > path.stat().st_size:
                reason = "refused, its records are compressed or overlap, unlike those of torch"
                raise CheckpointError(f"{path}: {reason}")
            pickles = [archive.read(r) for r in records if r.filename.endswith("data.pkl")]
        if any(b"\nbytearray\n" in code for code in pickles):  # torch calls it with any size
            raise CheckpointError(f"{path}: refused, it has code (bytearray), not only weights")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        name = re.search(r"GLOBAL ([\w.]+)", str(error))
        code = f" ({name[1]})" if name else ""
        raise CheckpointError(f"{path}: refused, it has code{code}, not only weights") from None
    except OSError as error:
        raise CheckpointError(f"{path}: damaged ({error})") from None


def _is_plain_tensor(value: object) -> bool:
    """Whether a value is a tensor in memory whose values are all in its file."""
    if not isinstance(value, Tensor) or value.layout != torch.strided or value.is_quantized:
        return False
    size = value.numel() * value.itemsize
    return value.device.type == "cpu" and size <= value.untyped_storage().nbytes()


def _training_settings(init_args: dict[str, Any]) -> dict[str, Any]:
    """The settings of `TRAINING_ARGUMENTS` by dotted name."""
    groups = {n: init_args[n] for n in TRAINING_ARGUMENTS if isinstance(init_args.get(n), dict)}
    return {f"{name}.{key}": v for name, group in groups.items() for key, v in group.items()}


def _without_neutral(argument: object) -> object:
    """An argument without the parts that do not change predictions."""
    if not isinstance(argument, dict):
        return argument or {}
    return {k: v for k, v in argument.items() if k not in NEUTRAL_ARGUMENTS and "drop" not in k}
