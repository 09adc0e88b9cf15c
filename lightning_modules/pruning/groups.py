"""Channels that can only go together, as torch-pruning finds them in one pass of an image."""

import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from consilium.cli.words import needed
from lightning_modules.pruning.search import Cost, Cut
from lightning_modules.pruning.structure import depthwise, narrows


class Node(Protocol):
    """A layer, as torch-pruning has it in its graph."""

    module: nn.Module


class Dependency(Protocol):
    """What has to be done to one layer."""

    target: Node
    handler: Callable[..., object]


class Item(Protocol):
    """One layer of a group, and its channels in the order of the group's."""

    dep: Dependency
    idxs: list[int]
    root_idxs: list[int]


class Graph(Protocol):
    """torch-pruning's graph."""

    def is_out_channel_pruning_fn(self, handler: Callable[..., object]) -> bool:
        """Whether a layer loses outputs."""


def groups(net: nn.Module, image: Tensor, price: dict[str, Cost]) -> Iterator[list[Cut]]:
    """Where channels of `net` lie that may go, each group of them, from one pass of `image`.

    Left out are groups that go through a layer that `structure.narrow` does not know (norms over
    channels, grouped convolutions, free parameters) or through the heads of an attention, those
    that no layer reads, and those whose layers cost one multiply-accumulate a weight:
    squeeze-excite, and the logits.
    torch-pruning finds no end of the groups of convolutions beside attention, so there are none.
    """
    if _is_mixed(net):
        return
    torch_pruning = needed("torch_pruning", "prune")
    net = copy.deepcopy(net).eval().requires_grad_(True)
    names = {layer: name for name, layer in net.named_modules()}
    with torch.enable_grad():
        graph = torch_pruning.DependencyGraph().build_dependency(net, image, verbose=False)
    for found in graph.get_all_groups():
        cuts = _distinct([_cut(graph, names, item) for item in found
                          if item.dep.target.module in names])  # fmt: skip
        layers = [item.dep.target.module for item in found]
        together = len({len(cut.positions) for cut in cuts}) == 1
        useful = any(_pays(cut, price) for cut in cuts) and any(cut.side == "in" for cut in cuts)
        if together and useful and _may_go(net, names, layers):
            yield cuts


def costs(net: nn.Module, image: Tensor) -> dict[str, Cost]:
    """The costs of every layer that can be narrowed, for one image."""
    found: dict[str, Cost] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda layer, _, output: found.update({name: _cost(layer, output[:1])})

    layers = [(n, m) for n, m in net.named_modules()
              if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]  # fmt: skip
    hooks = [layer.register_forward_hook(note(name)) for name, layer in layers]
    try:
        with torch.no_grad():
            net(image[:1])
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _is_mixed(net: nn.Module) -> bool:
    """Whether there are convolutions beside attention, other than the one that sees the image."""
    layers = list(net.modules())
    attention = any(hasattr(layer, "num_heads") for layer in layers)
    return attention and sum(isinstance(layer, nn.Conv2d) for layer in layers) > 1


def _cost(layer: nn.Conv2d | nn.Linear | nn.BatchNorm2d, output: Tensor) -> Cost:
    if isinstance(layer, nn.BatchNorm2d):
        return Cost(0, 0, layer.num_features, layer.num_features)
    weights = layer.weight.numel()
    if isinstance(layer, nn.Linear):
        positions = output.numel() // layer.out_features
        return Cost(positions * weights, positions, layer.out_features, layer.in_features)
    positions = output.shape[-2] * output.shape[-1]
    return Cost(positions * weights, positions, layer.out_channels, layer.in_channels)


def _may_go(net: nn.Module, names: dict[nn.Module, str], layers: Sequence[object]) -> bool:
    for layer in layers:
        if isinstance(layer, nn.Parameter):
            return False
        if isinstance(layer, nn.Module) and layer in names:
            parent = net.get_submodule(names[layer].rpartition(".")[0])
            if not narrows(layer) or hasattr(parent, "num_heads"):
                return False
    return True


def _pays(cut: Cut, price: dict[str, Cost]) -> bool:
    return cut.side == "out" and price[cut.layer].positions > 1


def _cut(graph: Graph, names: dict[nn.Module, str], item: Item) -> Cut:
    layer, positions = item.dep.target.module, dict[int, list[int]]()
    for position, root in zip(item.idxs, item.root_idxs, strict=True):
        positions.setdefault(root, []).append(position)
    out = depthwise(layer) or graph.is_out_channel_pruning_fn(item.dep.handler)
    where = [positions[root] for root in sorted(positions)]
    return Cut(names[layer], "out" if out else "in", where)


def _distinct(cuts: Sequence[Cut]) -> list[Cut]:
    """A depthwise layer stands in a group with both its sides, which are one."""
    return list({(cut.layer, cut.side): cut for cut in cuts}.values())
