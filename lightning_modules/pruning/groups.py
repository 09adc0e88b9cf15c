"""Groups of channels that must be pruned together, and what each layer costs to compute."""

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_modules.model_info import layer_macs
from lightning_modules.pruning.structure import is_depthwise, is_prunable


@dataclass(frozen=True)
class LayerCost:
    """Multiply-accumulates, output positions and channels of a layer for one image."""

    macs: int
    positions: int
    out_channels: int
    in_channels: int

    def channels(self, side: str) -> int:
        """Number of channels on side `out` or `in`."""
        return self.out_channels if side == "out" else self.in_channels


@dataclass(frozen=True)
class LayerChannels:
    """The channels of a group in one layer: `indices[i]` are those of the group's channel i."""

    layer: str
    side: str
    indices: list[list[int]]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that run through several layers; a pruned channel is removed from all of them.

    Args:
        layers: the channels in each layer.
        scores: (n,) the importance of each channel.
    """

    layers: list[LayerChannels]
    scores: Tensor


def find_groups(
    net: nn.Module, image: Tensor, costs: dict[str, LayerCost]
) -> Iterator[list[LayerChannels]]:
    """Yields each group of channels that can be pruned, as torch-pruning traces it on `image`.

    Excluded are groups that run through a layer that `prune_channels` does not support (norms over
    channels, grouped convolutions, free parameters) or through attention heads, groups that no
    layer reads, and groups whose layers have one output position (squeeze-excite, the classifier).
    Networks with convolutions next to attention have no groups: torch-pruning would not terminate.
    """
    if _mixes_attention_and_convolutions(net):
        return
    import torch_pruning

    net = copy.deepcopy(net).eval().requires_grad_(True)
    names = {layer: name for name, layer in net.named_modules()}
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(net, image, verbose=False)
    for group in graph.get_all_groups():
        targets = [item.dep.target.module for item in group]
        layers = []
        for item in group:
            layer = item.dep.target.module
            if layer in names:
                is_output = graph.is_out_channel_pruning_fn(item.dep.handler)
                side = "out" if is_depthwise(layer) or is_output else "in"
                indices = _indices_by_channel(item.idxs, item.root_idxs)
                layers.append(LayerChannels(names[layer], side, indices))
        layers = _distinct(layers)
        has_one_size = len({len(channels.indices) for channels in layers}) == 1
        is_read = any(channels.side == "in" for channels in layers)
        saves_macs = any(
            channels.side == "out" and costs[channels.layer].positions > 1 for channels in layers
        )
        if has_one_size and is_read and saves_macs and _can_be_pruned(net, names, targets):
            yield layers


def layer_costs(net: nn.Module, image: Tensor) -> dict[str, LayerCost]:
    """The cost of each convolution, linear layer and batch norm for one image."""
    costs = {
        name: LayerCost(0, 0, layer.num_features, layer.num_features)
        for name, layer in net.named_modules()
        if isinstance(layer, nn.BatchNorm2d)
    }
    for use in layer_macs(net, image[:1]):
        layer, name = use.layer, use.name.removesuffix(".weight")
        if isinstance(layer, nn.Conv2d):
            channels = layer.out_channels, layer.in_channels
        elif isinstance(layer, nn.Linear):
            channels = layer.out_features, layer.in_features
        else:
            continue
        costs[name] = LayerCost(use.macs, use.positions, *channels)
    return costs


def total_macs(net: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of all convolutions and linear layers for one image."""
    return sum(cost.macs for cost in layer_costs(net, image).values())


def _is_attention(layer: nn.Module) -> bool:
    return getattr(layer, "num_heads", None) is not None  # timm has one class for each family


def _mixes_attention_and_convolutions(net: nn.Module) -> bool:
    """Whether there are convolutions next to attention, apart from a patch embedding."""
    layers = list(net.modules())
    convolutions = sum(isinstance(layer, nn.Conv2d) for layer in layers)
    return convolutions > 1 and any(map(_is_attention, layers))


def _can_be_pruned(net: nn.Module, names: dict[nn.Module, str], targets: Sequence[object]) -> bool:
    for target in targets:
        if isinstance(target, nn.Parameter):
            return False
        if isinstance(target, nn.Module) and target in names:
            parent = net.get_submodule(names[target].rpartition(".")[0])
            if not is_prunable(target) or _is_attention(parent):
                return False
    return True


def _indices_by_channel(indices: Sequence[int], channels: Sequence[int]) -> list[list[int]]:
    """The indices in a layer of each channel of a group, in the order of the channels."""
    by_channel: dict[int, list[int]] = {}
    for index, channel in zip(indices, channels, strict=True):
        by_channel.setdefault(channel, []).append(index)
    return [by_channel[channel] for channel in sorted(by_channel)]


def _distinct(layers: Sequence[LayerChannels]) -> list[LayerChannels]:
    """One entry per layer and side: torch-pruning lists a depthwise layer once for each side."""
    return list({(channels.layer, channels.side): channels for channels in layers}.values())
