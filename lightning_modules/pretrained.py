"""Weight files read without pickle and fitted into a timm network, every tensor accounted for."""

import sys
from pathlib import Path

import safetensors
import timm
from safetensors.torch import load_file
from torch import Tensor, nn

Weights = dict[str, Tensor]
# The names under which timm's model files keep the function that turns foreign or
# differently sized weights into their own; a network without one takes its own weights only.
FILTERS = ("checkpoint_filter_fn", "_filter_torchvision_pretrained", "_filter_fn")


def read(path: str) -> Weights:
    """The tensors of a ``.safetensors`` file, or of a ``.pth``/``.bin`` file read weights-only."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"pretrained: no weight file at {path!r}")
    try:
        return _tensors(file)
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(f"pretrained: {path!r} is not a readable weight file: {error}") from error


def load(net: nn.Module, path: str) -> None:
    """Put the file's weights into ``net``; the head stays new unless its shape fits.

    Weights are resized to the network's input size where timm knows how. A weight that is
    missing, left over or of another shape is a ValueError that names it.
    """
    weights = _first_layer(net, _adapted(net, read(path)))
    own = net.state_dict()
    heads = tuple(f"{name}." for name in head_names(net))
    kept = {k: v for k, v in weights.items() if not k.startswith(heads) or _fits(own, k, v)}
    _refuse_difference(own, kept, heads, path)
    net.load_state_dict(kept, strict=False)


def head_names(net: nn.Module) -> list[str]:
    """Names of the layers that make the logits, as timm records them."""
    return _recorded(net, "classifier")


def _recorded(net: nn.Module, key: str) -> list[str]:
    found = (getattr(net, "pretrained_cfg", None) or {}).get(key) or []
    return [found] if isinstance(found, str) else [str(name) for name in found]


def _tensors(file: Path) -> Weights:
    if file.suffix == ".safetensors":
        return load_file(file)
    found = timm.models.load_state_dict(str(file), weights_only=True)
    return {name: value for name, value in found.items() if isinstance(value, Tensor)}


def _adapted(net: nn.Module, weights: Weights) -> Weights:
    module = vars(sys.modules[type(net).__module__])
    convert = next((module[name] for name in FILTERS if name in module), None)
    return dict(convert(weights, net)) if convert else weights


def _first_layer(net: nn.Module, weights: Weights) -> Weights:
    for name in _recorded(net, "first_conv"):
        key, wanted = f"{name}.weight", net.state_dict().get(f"{name}.weight")
        if key in weights and wanted is not None and wanted.shape != weights[key].shape:
            weights[key] = timm.models.adapt_input_conv(wanted.shape[1], weights[key])
    return weights


def _fits(own: Weights, name: str, value: Tensor) -> bool:
    return name in own and own[name].shape == value.shape


def _refuse_difference(own: Weights, kept: Weights, heads: tuple[str, ...], path: str) -> None:
    counters = "num_batches_tracked"  # absent from files that were converted from elsewhere
    missing = [k for k in own if k not in kept and not k.startswith(heads) and counters not in k]
    shapes = [k for k in kept if k in own and not _fits(own, k, kept[k])]
    for problem, names in (
        ("lacks", missing),
        ("has weights unknown to the network:", sorted(set(kept) - set(own))),
        ("has other shapes for", shapes),
    ):
        if names:
            raise ValueError(f"pretrained: {path!r} {problem} {_few(names)}")


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more
