"""Weight files read without pickle and loaded into a timm network, every tensor accounted for."""

import sys
from pathlib import Path

import safetensors
import timm
from safetensors.torch import load_file
from torch import Tensor, nn

Weights = dict[str, Tensor]
# Names under which timm's model files define the function that converts weights of other sources
# or sizes; a network without one takes weights of its own names only.
FILTERS = ("checkpoint_filter_fn", "_filter_torchvision_pretrained", "_filter_fn")
MAX_NAMES = 5  # in a message


def read(path: str) -> Weights:
    """The tensors of a `.safetensors` file, or of a `.pth`/`.bin` file read weights-only."""
    file = Path(path)
    if not file.is_file():
        raise ValueError(f"pretrained: no weight file at {path!r}")
    try:
        return _read_tensors(file)
    except (safetensors.SafetensorError, RuntimeError, EOFError, ValueError, OSError) as error:
        raise ValueError(f"pretrained: {path!r} is not a readable weight file: {error}") from error


def load(net: nn.Module, path: str) -> None:
    """Loads the weights of a file into `net`; the head stays new unless its shape matches.

    Weights are resized to the network's input size if timm can do so. A weight that is missing,
    unknown or of another shape is a ValueError that names it.
    """
    weights = _adapt_first_layer(net, _convert(net, read(path)))
    own = net.state_dict()
    heads = tuple(f"{name}." for name in head_names(net))
    used = {k: v for k, v in weights.items() if not k.startswith(heads) or _matches(own, k, v)}
    _refuse_difference(own, used, heads, path)
    net.load_state_dict(used, strict=False)


def head_names(net: nn.Module) -> list[str]:
    """Names of the layers that compute the logits, as timm records them."""
    return _recorded_names(net, "classifier")


def _recorded_names(net: nn.Module, key: str) -> list[str]:
    names = (getattr(net, "pretrained_cfg", None) or {}).get(key) or []
    return [names] if isinstance(names, str) else [str(name) for name in names]


def _read_tensors(file: Path) -> Weights:
    if file.suffix == ".safetensors":
        return load_file(file)
    state = timm.models.load_state_dict(str(file), weights_only=True)
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def _convert(net: nn.Module, weights: Weights) -> Weights:
    module = vars(sys.modules[type(net).__module__])
    convert = next((module[name] for name in FILTERS if name in module), None)
    return dict(convert(weights, net)) if convert else weights


def _adapt_first_layer(net: nn.Module, weights: Weights) -> Weights:
    """Weights whose first convolution has the number of input channels of `net`."""
    for name in _recorded_names(net, "first_conv"):
        key, own = f"{name}.weight", net.state_dict().get(f"{name}.weight")
        if key in weights and own is not None and own.shape != weights[key].shape:
            weights[key] = timm.models.adapt_input_conv(own.shape[1], weights[key])
    return weights


def _matches(own: Weights, name: str, value: Tensor) -> bool:
    return name in own and own[name].shape == value.shape


def _refuse_difference(own: Weights, used: Weights, heads: tuple[str, ...], path: str) -> None:
    counters = "num_batches_tracked"  # missing in files that were converted from elsewhere
    missing = [k for k in own if k not in used and not k.startswith(heads) and counters not in k]
    for problem, names in (
        ("lacks", missing),
        ("has weights unknown to the network:", sorted(set(used) - set(own))),
        ("has other shapes for", [k for k in used if k in own and not _matches(own, k, used[k])]),
    ):
        if names:
            rest = len(names) - MAX_NAMES
            shown = ", ".join(names[:MAX_NAMES]) + (f" and {rest} more" if rest > 0 else "")
            raise ValueError(f"pretrained: {path!r} {problem} {shown}")
