"""Backbones by name: networks of timm and of this project, at an input size, with weights."""

import difflib
import inspect
import re
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError

import safetensors
import timm
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from lightning_modules import residual_attention
from lightning_modules.batch_norm import update_statistics_once
from lightning_modules.weight_formats import read_pickled, to_timm_names

Weights = dict[str, Tensor]
OWN_BACKBONES = [residual_attention.ResidualAttention]  # importing a module registers it in timm
COMMERCIAL_LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "bsd-2-clause", "cc0-1.0", "cc-by-4.0")
SIZES = range(32, 513, 32)  # tried to list the sizes that a backbone accepts
# Names under which timm's model files define the function that converts weights of other sources
# or sizes; a network without one takes weights of its own names only.
CONVERTERS = ("checkpoint_filter_fn", "_filter_torchvision_pretrained", "_filter_fn")
# beginnings of the names of timm's arguments that say where weights come from
SOURCES = (
    "cache_dir",
    "checkpoint",
    "file",
    "hf_hub",
    "pretrained",
    "state_dict",
    "url",
    "weights",
)
MAX_NAMES = 5  # in a message


def build(
    name: str, num_classes: int, *,
    pretrained: bool | str = False, image_size: int | None = None,
    grad_checkpointing: bool = False, channels_last: bool = True, compile: bool = False,
    commercial_only: bool = False, **options: object,
) -> nn.Module:  # fmt: skip
    """A timm network with `num_classes` outputs for images of `image_size` pixels.

    `pretrained` is False (no network access), True (timm downloads the weights of the name's tag)
    or the path of a weight file. `image_size` None is the size of the published weights. `options`
    are arguments of the timm model. `commercial_only` refuses published weights whose license
    forbids commercial use. `compile` compiles at the first call; names of weights do not change.
    `channels_last` stores weights in the memory format that is the faster one for convolutions.
    The new head of a pretrained network starts at zero; without `pretrained`, timm's is kept.
    """
    _pretrained_config(name)  # an error for an unknown name
    refuse_sources(options)
    if commercial_only and pretrained is not False and license(name) not in COMMERCIAL_LICENSES:
        raise ValueError(f"commercial_only: the weights of {name} are under {license(name)!r}")
    if image_size is not None and (reason := _size_error(name, image_size, options)):
        accepted = ", ".join(map(str, accepted_sizes(name, **options))) or "none of those tried"
        problem = f"{name} does not accept {image_size} ({reason})"
        raise ValueError(f"image_size: {problem}; it accepts {accepted}")
    net = _create(name, num_classes, image_size, options, download=pretrained is True)
    if isinstance(pretrained, str):
        zero_head(net)
        load_weights(net, pretrained)
    elif pretrained and num_classes != _pretrained_config(name).num_classes:
        zero_head(net)
    if grad_checkpointing:
        switch = getattr(net, "set_grad_checkpointing", None)
        if switch is None:
            raise ValueError(f"grad_checkpointing: {name} does not support it; use false")
        switch(True)
        update_statistics_once(net)
    if compile:
        net.compile()
    return net.to(memory_format=torch.channels_last) if channels_last else net


def refuse_sources(options: Mapping[str, object], path: str = "backbone_args") -> None:
    """ValueError if an argument names a file or a URL, from which timm might load code."""
    for name, value in options.items():
        if isinstance(value, Mapping):
            refuse_sources(value, f"{path}.{name}")
        is_location = isinstance(value, str | Path) and re.search(r"[/\\:]", str(value))
        if is_location or name.startswith(SOURCES):
            reason = "may not name a file, a URL or weights; give the path of weights as pretrained"
            raise ValueError(f"{path}: {name}: {value!r}: {reason}")


def nearest_names(name: str) -> list[str]:
    """Up to five known names closest to `name`: tags of its architecture, else architectures."""
    architecture = name.split(".")[0]
    if timm.is_model(architecture):
        return difflib.get_close_matches(name, timm.list_pretrained(f"{architecture}.*"), 5, 0)
    return difflib.get_close_matches(architecture, timm.list_models(), 5, 0.5)


def input_size(name: str) -> int:
    """Input size in pixels of the published weights of `name`."""
    return int(_pretrained_config(name).input_size[-1])


def license(name: str) -> str:
    """License of the published weights of `name`, as timm records it, or "unknown"."""
    return str(_pretrained_config(name).license or "unknown")


def accepted_sizes(name: str, **options: object) -> list[int]:
    """Multiples of 32 up to 512 that `name` accepts as `image_size`."""
    return [size for size in SIZES if _size_error(name, size, options) is None]


def _pretrained_config(name: str) -> timm.models.PretrainedCfg:
    """What timm records about the published weights of `name`; an unknown name is an error."""
    with suppress(RuntimeError):  # the architecture exists, the tag behind the dot does not
        if timm.is_model(name) and (config := timm.models.get_pretrained_cfg(name)) is not None:
            return config
    close = ", ".join(nearest_names(name)) or "none; `consilium backbones` lists all"
    raise ValueError(f"backbone: unknown name {name!r}; the nearest are: {close}")


def _size_error(name: str, size: int, options: dict[str, object]) -> str | None:
    """Error of a forward pass at `size` on the meta device, or None."""
    try:
        with torch.device("meta"), torch.no_grad():
            net = _create(name, 2, size, options, download=False).eval()
            net(torch.zeros(1, int(str(options.get("in_chans", 3))), size, size))
    except (RuntimeError, AssertionError, ZeroDivisionError) as error:
        return str(error).split("\n")[0] or type(error).__name__
    return None


def _create(
    name: str, num_classes: int, size: int | None, options: dict[str, object], download: bool
) -> nn.Module:
    """The timm network with random or downloaded weights; ValueError if that fails."""
    arguments = {"num_classes": num_classes, **options}
    if size is not None and timm.models.get_pretrained_cfg(name).fixed_input_size:
        arguments.setdefault("img_size", size)
    try:
        net: nn.Module = timm.create_model(name, pretrained=download, **arguments)
    except TypeError as error:
        raise ValueError(f"backbone_args: {name} refuses {sorted(options)}: {error}") from error
    except (OSError, RuntimeError) as error:
        if not download:
            raise
        config = _pretrained_config(name)
        source = config.hf_hub_id or config.url
        if not source:
            raise ValueError(f"pretrained: timm has no weights for {name!r}: {error}") from error
        raise ValueError(
            f"pretrained: the weights of {name!r} could not be downloaded ({type(error).__name__})."
            f" On a machine with network run `hf download {source} model.safetensors --local-dir .`"
            ", then set pretrained: path/to/model.safetensors"
        ) from error
    return net


def load_weights(net: nn.Module, path: str) -> None:
    """Loads the weights of a file into `net`; the head stays new unless its shape matches.

    The file may be of timm, torchvision or one of `weight_formats.WEIGHT_FORMATS`.
    No code in the file (.safetensors, .pth or .bin) is run. Weights are resized to the network's
    input size if timm can do so. A missing, unknown or misshaped weight is a ValueError.
    """
    weights = to_timm_names(_read_weight_file(path))
    weights = _adapt_first_layer(net, _convert_by_timm(net, weights))
    own = net.state_dict()
    heads = tuple(f"{name}." for name in head_names(net))
    misshaped = [k for k in weights if k in own and own[k].shape != weights[k].shape]
    new = {k for k in weights if k.startswith(heads) and (k not in own or k in misshaped)}
    used = {name: value for name, value in weights.items() if name not in new}
    counters = "num_batches_tracked"  # missing in files that were converted from elsewhere
    missing = [k for k in own if k not in used and not k.startswith(heads) and counters not in k]
    for problem, names in (
        ("lacks", missing),
        ("has weights unknown to the network:", sorted(set(used) - set(own))),
        ("has other shapes for", [k for k in misshaped if k in used]),
    ):
        if names:
            rest = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
            raise ValueError(f"pretrained: {path!r} {problem} {', '.join(names[:MAX_NAMES])}{rest}")
    net.load_state_dict(used, strict=False)


def zero_head(net: nn.Module) -> None:
    """Sets the head to 0, so that all classes are equally likely at first.

    timm draws the heads of some families from so wide a distribution that the first steps would
    change pretrained features more than all later ones. A random network has none to protect, and
    small attention networks stay at chance if its head is zero.
    """
    heads = tuple(f"{name}." for name in head_names(net))
    for name, parameter in net.named_parameters():
        if name.startswith(heads):
            nn.init.zeros_(parameter)


def head_names(net: nn.Module) -> list[str]:
    """Names of the layers that compute the logits, as timm records them."""
    return _recorded_names(net, "classifier")


def _recorded_names(net: nn.Module, key: str) -> list[str]:
    """Names of the layers that timm records for a network as "first_conv" or "classifier"."""
    names = (getattr(net, "pretrained_cfg", None) or {}).get(key) or []
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _read_weight_file(path: str) -> Weights:
    """The tensors of a weight file by name; ValueError if it is missing or not readable."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"pretrained: no weight file at {path!r}")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        return read_pickled(path)
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, OSError,
            UnpicklingError) as error:  # fmt: skip
        raise ValueError(f"pretrained: {path!r} is not a readable weight file: {error}") from error


def _convert_by_timm(net: nn.Module, weights: Weights) -> Weights:
    """Weights renamed and resized by the function in timm's file of the network, if it has one."""
    module = vars(sys.modules[type(net).__module__])
    convert = next((module[name] for name in CONVERTERS if name in module), None)
    if convert is None:
        return weights
    arguments = (weights, net)[: len(inspect.signature(convert).parameters)]  # one or both
    return dict(convert(*arguments))


def _adapt_first_layer(net: nn.Module, weights: Weights) -> Weights:
    """Weights with the first convolution converted to the number of input channels of `net`."""
    for name in _recorded_names(net, "first_conv"):
        key, own = f"{name}.weight", net.state_dict().get(f"{name}.weight")
        if key in weights and own is not None and own.shape != weights[key].shape:
            if weights[key].shape[1] == 1:  # of gray images: the same for three equal channels
                weights[key] = weights[key].expand(-1, own.shape[1], -1, -1) / own.shape[1]
            else:
                weights[key] = timm.models.adapt_input_conv(own.shape[1], weights[key])
    return weights
