"""Channels of a network: what they cost, which belong together, and their removal as plain data."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.model_info import layer_macs

# layer name -> {"out": output channels that remain, "in": input channels that remain}, numbered as
# in the unpruned network; a side that loses no channel is left out
Structure = dict[str, dict[str, list[int]]]


@dataclass(frozen=True)
class LayerCost:
    """Multiply-accumulates, output positions and channels of a layer for one image."""

    macs: int
    positions: int
    channels: dict[str, int]  # on side `out` and `in`


Costs = dict[str, LayerCost]  # by layer name


@dataclass(frozen=True)
class LayerChannels:
    """The channels of a group in one layer: `indices[i]` are those of the group's channel i."""

    layer: str
    side: str
    indices: list[list[int]]


def prune_channels(net: nn.Module, structure: Structure) -> None:
    """Removes all channels from the layers of `net` that `structure` does not list, in place.

    Only convolutions (ungrouped or depthwise), linear layers and batch norms; others are an error.
    """
    layers = dict(net.named_modules())
    for name, sides in structure.items():
        layer = layers.get(name)
        if layer is None:
            raise ValueError(f"structure: the network has no layer {name!r}")
        if not isinstance(sides, dict) or not sides or not set(sides) <= {"out", "in"}:
            raise ValueError(f"structure: {name} has {str(sides)[:40]}; a side is 'out' or 'in'")
        if not is_prunable(layer):
            kind = type(layer).__name__
            raise ValueError(f"structure: {name} is a {kind}, which cannot be pruned")
        for side, channels in sides.items():
            _require_channels(f"{name}, {side}", channels, _num_channels(layer)[side])
            _prune_layer(layer, side, channels)


def pruned_copy(net: nn.Module, structure: Structure) -> nn.Module:
    """A copy of `net` with the channels of `structure` only, in eval mode."""
    pruned = copy.deepcopy(net)
    prune_channels(pruned, structure)
    return pruned.eval()


def compose_structures(first: Structure, second: Structure) -> Structure:
    """One structure in place of two: pruning to `first`, then to `second`.

    Channel numbers in `second` are those of the network after pruning to `first`.
    """
    composed = {name: dict(sides) for name, sides in first.items()}
    for name, sides in second.items():
        own = composed.setdefault(name, {})
        for side, channels in sides.items():
            own[side] = [own[side][i] for i in channels] if side in own else channels
    return composed


def zero_pruned_channels(net: nn.Module, structure: Structure) -> None:
    """Sets the outputs of all channels that `structure` removes to 0, in place, without removal."""
    layers = dict(net.named_modules())
    for name, sides in structure.items():
        if "out" in sides:
            pruned = torch.ones(_num_channels(layers[name])["out"], dtype=torch.bool)
            pruned[sides["out"]] = False
            for parameter in layers[name].parameters(recurse=False):
                parameter.data[pruned] = 0


def outputs_match(net: nn.Module, structure: Structure, image: Tensor) -> bool:
    """Whether removing channels gives the same outputs as zeros there, in double precision.

    Not so if an operation outside of torch-pruning's layers mixes channels or does not map 0 to 0.
    """
    zeroed = copy.deepcopy(net).double().eval()
    pruned = pruned_copy(zeroed, structure)
    zero_pruned_channels(zeroed, structure)
    with torch.no_grad():
        expected, actual = (model(image.double()) for model in (zeroed, pruned))
    return bool((expected - actual).abs().max() <= 1e-6 * expected.abs().max().clamp_min(1e-6))


def find_groups(net: nn.Module, image: Tensor, costs: Costs) -> Iterator[list[LayerChannels]]:
    """Yields each group of channels that can be pruned, as torch-pruning traces it on `image`.

    Excluded are groups with a layer that `prune_channels` does not support (norms over channels,
    grouped convolutions, free parameters) or with attention heads, those that no layer reads, and
    those whose layers have one output position (squeeze-excite, the classifier). With convolutions
    next to attention there are none: torch-pruning would not terminate.
    """
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in net.modules())
    if convolutions > 1 and any(map(_is_attention, net.modules())):  # one is a patch embedding
        return
    import torch_pruning

    net = copy.deepcopy(net).eval().requires_grad_(True)
    names = {layer: name for name, layer in net.named_modules()}
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(net, image, verbose=False)
    for group in graph.get_all_groups():
        by_side: dict[tuple[str, str], LayerChannels] = {}  # a depthwise layer has `out` only
        can_be_pruned = True
        for item in group:
            layer = item.dep.target.module
            can_be_pruned &= not isinstance(layer, nn.Parameter)
            if name := names.get(layer):
                parent = net.get_submodule(name.rpartition(".")[0])
                can_be_pruned &= is_prunable(layer) and not _is_attention(parent)
                is_output = is_depthwise(layer) or graph.is_out_channel_pruning_fn(item.dep.handler)
                side = "out" if is_output else "in"
                indices = _indices_by_channel(item.idxs, item.root_idxs)
                by_side[name, side] = LayerChannels(name, side, indices)
        has_one_size = len({len(channels.indices) for channels in by_side.values()}) == 1
        is_read = any(side == "in" for _, side in by_side)
        saves_macs = any(side == "out" and costs[name].positions > 1 for name, side in by_side)
        if can_be_pruned and has_one_size and is_read and saves_macs:
            yield list(by_side.values())


def layer_costs(net: nn.Module, image: Tensor) -> Costs:
    """The cost of each convolution, linear layer and batch norm for one image."""
    norms = [(name, m) for name, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)]
    costs = {name: LayerCost(0, 0, _num_channels(norm)) for name, norm in norms}
    for use in layer_macs(net, image[:1]):
        if isinstance(use.layer, nn.Conv2d | nn.Linear):
            cost = LayerCost(use.macs, use.positions, _num_channels(use.layer))
            costs[use.name.removesuffix(".weight")] = cost
    return costs


def is_depthwise(conv: nn.Module) -> bool:
    """Whether each output channel of a convolution reads one input channel."""
    return isinstance(conv, nn.Conv2d) and 1 < conv.groups == conv.in_channels == conv.out_channels


def is_prunable(layer: nn.Module) -> bool:
    """Whether `prune_channels` supports the kind of the layer."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups == 1 or is_depthwise(layer)
    return isinstance(layer, nn.Linear | nn.BatchNorm2d)


def _is_attention(layer: nn.Module) -> bool:
    """Whether a layer has attention heads; timm has one class for each family."""
    return getattr(layer, "num_heads", None) is not None


def _indices_by_channel(indices: Sequence[int], channels: Sequence[int]) -> list[list[int]]:
    """For each channel of a group, its indices in one layer: all i of `indices` of that channel.

    `channels` has the channel of each index; a channel has several indices in a layer that follows
    a flattening or a concatenation.
    """
    by_channel: dict[int, list[int]] = {}
    for index, channel in zip(indices, channels, strict=True):
        by_channel.setdefault(channel, []).append(index)
    return [by_channel[channel] for channel in sorted(by_channel)]


def _channels_attribute(layer: nn.Module, side: str) -> str:
    """Name of the attribute with the number of channels on a side ("in" or "out")."""
    if isinstance(layer, nn.BatchNorm2d):
        return "num_features"
    return f"{side}_channels" if isinstance(layer, nn.Conv2d) else f"{side}_features"


def _num_channels(layer: nn.Module) -> dict[str, int]:
    """Number of channels of a layer by side ("in" and "out")."""
    return {side: getattr(layer, _channels_attribute(layer, side)) for side in ("out", "in")}


def _require_channels(where: str, channels: Sequence[int], width: int) -> None:
    """ValueError naming `where` unless `channels` are ascending numbers from 0 to width - 1."""
    are_ints = isinstance(channels, list) and all(type(i) is int for i in channels)
    if not are_ints or not channels or channels != sorted(set(channels) & set(range(width))):
        allowed = f"some of the channels 0..{width - 1} in ascending order"
        raise ValueError(f"structure: {where} has {str(channels)[:40]}, not {allowed}")


def _prune_layer(layer: nn.Module, side: str, channels: list[int]) -> None:
    """Selects `channels` in the tensors of a layer, and sets its attributes accordingly."""
    dim, names, sizes = 0, ["weight", "bias"], [_channels_attribute(layer, side)]
    if isinstance(layer, nn.BatchNorm2d):
        names += ["running_mean", "running_var"]
    elif is_depthwise(layer):
        sizes = ["in_channels", "out_channels", "groups"]
    elif side == "in":
        dim, names = 1, ["weight"]
    for name in names:
        tensor: Tensor | None = getattr(layer, name)
        if tensor is not None:
            index = torch.tensor(channels, device=tensor.device)
            selected = tensor.detach().index_select(dim, index)
            if isinstance(tensor, nn.Parameter):
                selected = nn.Parameter(selected, tensor.requires_grad)
            setattr(layer, name, selected)
    vars(layer).update(dict.fromkeys(sizes, len(channels)))
