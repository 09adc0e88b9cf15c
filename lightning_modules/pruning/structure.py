"""Channel-pruned networks as plain data: which input and output channels each layer keeps."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn

# layer name -> {"out": output channels that remain, "in": input channels that remain}, numbered as
# in the unpruned network; a side that loses no channel is left out
Structure = dict[str, dict[str, list[int]]]


def prune_channels(net: nn.Module, structure: Structure) -> None:
    """Removes all channels from the layers of `net` that `structure` does not list, in place.

    Convolutions (ungrouped or depthwise), linear layers and batch norms can be pruned. A layer
    that does not exist, of another kind, or without these channels raises a ValueError.
    """
    layers = dict(net.named_modules())
    for name, sides in structure.items():
        layer = layers.get(name)
        if layer is None:
            raise ValueError(f"structure: the network has no layer {name!r}")
        if not isinstance(sides, dict) or not sides or not set(sides) <= {"out", "in"}:
            raise ValueError(f"structure: {name} has {str(sides)[:40]}; a side is 'out' or 'in'")
        for side, channels in sides.items():
            _require_channels(f"{name}, {side}", channels, _num_channels(name, layer, side))
            _prune_layer(layer, side, channels)


def pruned_copy(net: nn.Module, structure: Structure) -> nn.Module:
    """A copy of `net` with the channels of `structure` only, in eval mode."""
    pruned = copy.deepcopy(net)
    prune_channels(pruned, structure)
    return pruned.eval()


def compose_structures(first: Structure, second: Structure) -> Structure:
    """The structure after pruning to `first` and then to `second`, whose numbers follow `first`."""
    composed = {name: dict(sides) for name, sides in first.items()}
    for name, sides in second.items():
        for side, channels in sides.items():
            before = composed.setdefault(name, {}).get(side)
            composed[name][side] = channels if before is None else [before[i] for i in channels]
    return composed


def zero_pruned_channels(net: nn.Module, structure: Structure) -> None:
    """Sets the outputs of all channels that `structure` removes to 0, in place, without removal."""
    layers = dict(net.named_modules())
    for name, sides in structure.items():
        if "out" in sides:
            layer = layers[name]
            pruned = torch.ones(_num_channels(name, layer, "out"), dtype=torch.bool)
            pruned[sides["out"]] = False
            for parameter in layer.parameters(recurse=False):
                parameter.data[pruned] = 0


def outputs_match(net: nn.Module, structure: Structure, image: Tensor) -> bool:
    """Whether removing channels gives the same outputs as setting these channels to 0.

    Compared in double precision. They differ if an operation mixes channels outside of the layers
    that torch-pruning traces, or does not map 0 to 0.
    """
    zeroed = copy.deepcopy(net).double().eval()
    pruned = pruned_copy(zeroed, structure)
    zero_pruned_channels(zeroed, structure)
    with torch.no_grad():
        expected, actual = (model(image.double()) for model in (zeroed, pruned))
    if expected.shape != actual.shape:
        return False
    return bool((expected - actual).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1e-6))


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each output channel of a convolution reads one input channel."""
    return isinstance(layer, nn.Conv2d) and 1 < layer.groups == layer.in_channels == (
        layer.out_channels
    )


def is_prunable(layer: nn.Module) -> bool:
    """Whether `prune_channels` supports the kind of the layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 or is_depthwise(layer)
    return isinstance(layer, nn.Linear | nn.BatchNorm2d)


def _num_channels(name: str, layer: nn.Module, side: str) -> int:
    if not is_prunable(layer):
        raise ValueError(f"structure: {name} is a {type(layer).__name__}, which cannot be pruned")
    if isinstance(layer, nn.BatchNorm2d):
        return layer.num_features
    attribute = "out_channels" if isinstance(layer, nn.Conv2d) else "out_features"
    return int(getattr(layer, attribute if side == "out" else attribute.replace("out", "in")))


def _require_channels(where: str, channels: Sequence[int], width: int) -> None:
    are_ints = isinstance(channels, list) and all(type(i) is int for i in channels)
    if (
        not are_ints
        or not channels
        or sorted(set(channels)) != channels
        or not 0 <= channels[0] <= channels[-1] < width
    ):
        raise ValueError(
            f"structure: {where} has {str(channels)[:40]}, "
            f"not some of the channels 0..{width - 1} in ascending order"
        )


def _prune_layer(layer: nn.Module, side: str, channels: list[int]) -> None:
    index = torch.tensor(channels)
    if isinstance(layer, nn.BatchNorm2d):
        _select(layer, ("weight", "bias", "running_mean", "running_var"), index, 0)
        layer.num_features = len(channels)
    elif is_depthwise(layer):
        _select(layer, ("weight", "bias"), index, 0)
        sizes = ("in_channels", "out_channels", "groups")
        vars(layer).update(dict.fromkeys(sizes, len(channels)))
    else:
        names = ("weight", "bias") if side == "out" else ("weight",)
        _select(layer, names, index, 0 if side == "out" else 1)
        kind = "channels" if isinstance(layer, nn.Conv2d) else "features"
        setattr(layer, f"{side}_{kind}", len(channels))


def _select(layer: nn.Module, names: Sequence[str], index: Tensor, dim: int) -> None:
    """Replaces tensors of `layer` by their slices at `index` along `dim`."""
    for name in names:
        tensor: Tensor | None = getattr(layer, name)
        if tensor is None:
            continue
        selected = tensor.detach().index_select(dim, index.to(tensor.device))
        if isinstance(tensor, nn.Parameter):
            selected = nn.Parameter(selected, tensor.requires_grad)
        setattr(layer, name, selected)
