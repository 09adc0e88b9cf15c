"""Which channels to prune for a target size or latency, by their importance for the loss."""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod

import torch
from rich.progress import track
from torch import Tensor, nn

from datamodules.datamodule import ImageDataModule
from lightning_modules.classifier import ImageClassifier
from lightning_modules.pruning.measure import CPU, latency_ratio
from lightning_modules.pruning.structure import (
    Costs,
    LayerChannels,
    Structure,
    find_groups,
    layer_costs,
    outputs_match,
    pruned_copy,
)

IMAGES_PER_GRADIENT = 8  # in larger batches gradients of opposite sign cancel
WRITE_COST = 256  # MACs in the time of writing one number; measured on two cores: 80 to 230
MIN_WIDTH = 0.1  # fraction of a group's channels that always remains


@dataclass(frozen=True)
class PruningTarget:
    """How small or how fast the pruned network must be, and how that is measured.

    Args:
        macs: largest fraction of the multiply-accumulates that may remain.
        latency: largest fraction of the latency of one image that may remain.
        cost_power: how much the cost of a channel counts against its importance; 0 not at all.
        round_to: widths are multiples of it.
        pairs: number of timed passes of each network.
        energy: whether to measure energy as well.
        device: where latency and energy are measured.
    """

    macs: float | None = None
    latency: float | None = None
    cost_power: float = 0.5
    round_to: int = 16
    pairs: int = 20
    energy: bool = False
    device: torch.device = CPU


@dataclass(frozen=True)
class ChannelGroup:
    """Channels that are pruned together in several layers, and their importance (n,)."""

    layers: list[LayerChannels]
    scores: Tensor


@dataclass(frozen=True)
class Candidate:
    """A structure, and the fraction of the multiply-accumulates that it leaves."""

    macs_ratio: float
    structure: Structure


def choose_structure(
    net: nn.Module, image: Tensor, name: str, target: PruningTarget, losses: Iterable[Tensor]
) -> Structure:
    """The largest structure within `target`; ValueError if there is none.

    The gradients of `losses`, scalars, give the importance of channels (`score_groups`).
    """
    costs = layer_costs(net, image)
    write_cost = WRITE_COST if target.latency else 0
    channels = list(find_groups(net, image[:1], costs))
    groups = score_groups(net, channels, costs, losses, target.cost_power, write_cost)
    candidates = find_candidates(groups, costs, target.round_to)
    if not candidates:
        tied = "a norm over channels, attention next to convolutions, or a grouped or split layer"
        reason = f"each is tied to {tied}, or in a layer narrower than round_to {target.round_to}"
        raise ValueError(f"{name}: no channels can be pruned: {reason}")

    def latency_of(candidate: Candidate) -> float:
        """Measured latency of the pruned network over that of `net`."""
        pruned = pruned_copy(net, candidate.structure)
        latency = latency_ratio(pruned, net, image[:1], target.pairs, target.device).value or 1.0
        print(f"{candidate.macs_ratio:.3f} of the multiply-accumulates: {latency:.3f} of the time")
        return latency

    best, rounding = candidates[0], f"with round_to {target.round_to}"
    if target.macs:
        least = f"at least {candidates[-1].macs_ratio:.3f} of the multiply-accumulates remain"
        error = f"macs: {target.macs} cannot be reached: {least} {rounding}"
        best = largest_within(candidates, target.macs, lambda c: c.macs_ratio, error)
    if target.latency:
        error = f"latency: {target.latency} cannot be reached {rounding}"
        smaller = [c for c in candidates if c.macs_ratio <= best.macs_ratio]
        best = largest_within(smaller, target.latency, latency_of, error)
    if not outputs_match(net, best.structure, image):
        reason = "the outputs without them differ from the outputs with these channels set to 0"
        raise ValueError(f"{name}: channels cannot be pruned: {reason}")
    return best.structure


def largest_within(
    candidates: list[Candidate], limit: float, ratio_of: Callable[[Candidate], float], error: str
) -> Candidate:
    """The first of `candidates` (from large to small) with a ratio within `limit`, by bisection."""
    index = bisect_left(candidates, True, key=lambda candidate: ratio_of(candidate) <= limit)
    if index == len(candidates):
        raise ValueError(error)
    return candidates[index]


def training_losses(module: ImageClassifier, data: ImageDataModule, count: int) -> Iterator[Tensor]:
    """Yields scalar training losses of small batches, of about `count` training images in all."""
    data.prepare_data()
    data.setup("fit")
    weights = None if data.class_weights is None else torch.tensor(data.class_weights)
    num_batches = -(-count // data.batch_size)
    loader = islice(data.train_dataloader(), num_batches)
    for batch in track(loader, "importance of channels", num_batches, transient=True):
        batch = data.on_after_batch_transfer(batch, 0)
        parts = (batch[name].split(IMAGES_PER_GRADIENT) for name in ("image", "label"))
        for image, label in zip(*parts, strict=True):
            yield module.compute_loss(module.net(image), label, weights)


def score_groups(
    net: nn.Module, groups: Sequence[list[LayerChannels]], costs: Costs,
    losses: Iterable[Tensor], cost_power: float = 0.5, write_cost: int = 0,
) -> list[ChannelGroup]:  # fmt: skip
    """First-order importance of each channel: the change of the loss without it, over its cost.

    Pruning sets a gate in front of the layers that read a channel from 1 to 0: the loss changes by
    about its gradient with respect to the gate. The root of the summed squares over `losses` is
    divided by `channel_cost` to the power of `cost_power`. Magnitudes of weights are no measure: a
    batch norm undoes any scale.
    """
    if not groups:
        return []
    names = sorted({c.layer for group in groups for c in group if c.side == "in"})
    weights = [net.get_submodule(name).get_parameter("weight") for name in names]
    scores = [torch.zeros(len(group[0].indices), dtype=torch.float64) for group in groups]
    for loss in losses:
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        products = [w.detach() * grad for w, grad in zip(weights, gradients, strict=True)]
        sums = [p.transpose(0, 1).flatten(1).sum(1).double().cpu() for p in products]
        by_input = dict(zip(names, sums, strict=True))
        for score, group in zip(scores, groups, strict=True):
            readers = [channels for channels in group if channels.side == "in"]
            gates = [by_input[c.layer][torch.tensor(c.indices)].sum(1) for c in readers]
            score += torch.stack(gates).sum(0).square()
    divisors = [channel_cost(group, costs, write_cost) ** cost_power for group in groups]
    parts = zip(groups, scores, divisors, strict=True)
    return [ChannelGroup(group, score.sqrt() / divisor) for group, score, divisor in parts]


def channel_cost(group: Sequence[LayerChannels], costs: Costs, write_cost: int) -> float:
    """MACs that one channel of a group causes, plus `write_cost` for each number it writes."""
    total = 0.0
    for channels in group:
        cost, count = costs[channels.layer], len(channels.indices[0])
        total += count * cost.macs / cost.channels[channels.side]
        total += count * cost.positions * write_cost if channels.side == "out" else 0
    return total


def find_candidates(groups: Sequence[ChannelGroup], costs: Costs, round_to: int) -> list[Candidate]:
    """Distinct structures that prune 1 to 99 % of all channels, from most to fewest MACs."""
    by_macs: dict[int, Structure] = {}
    for percent in range(1, 100) if groups else ():
        structure = to_structure(groups, select_channels(groups, percent / 100, round_to), costs)
        by_macs.setdefault(remaining_macs(structure, costs), structure)
    dense = sum(cost.macs for cost in costs.values())
    distinct = sorted((macs for macs in by_macs if macs < dense), reverse=True)
    return [Candidate(macs / dense, by_macs[macs]) for macs in distinct]


def select_channels(groups: Sequence[ChannelGroup], fraction: float, round_to: int) -> list[Tensor]:
    """Masks (n,) of each group's remaining channels, without the `fraction` of lowest scores.

    Widths are rounded to the nearest multiple of `round_to` (or to the full width).
    """
    scores = torch.cat([group.scores for group in groups])
    threshold = scores.sort().values[int(fraction * len(scores))]
    masks = []
    for group in groups:
        width, full_width = int((group.scores >= threshold).sum()), len(group.scores)
        multiples = [
            k for k in range(round_to, full_width, round_to) if k >= MIN_WIDTH * full_width
        ]
        width = min([*multiples, full_width], key=lambda k: (abs(k - width), -k))
        mask = torch.zeros(full_width, dtype=torch.bool)
        mask[group.scores.argsort(descending=True, stable=True)[:width]] = True
        masks.append(mask)
    return masks


def to_structure(groups: Sequence[ChannelGroup], masks: list[Tensor], costs: Costs) -> Structure:
    """The structure with the channels where `masks` (one per group) are True."""
    structure: Structure = {}
    for group, mask in zip(groups, masks, strict=True):
        removed = (~mask).nonzero().flatten().tolist()
        for channels in group.layers if removed else []:
            layer, side = channels.layer, channels.side
            pruned = {index for i in removed for index in channels.indices[i]}
            sides = structure.setdefault(layer, {})
            remaining = sides.get(side, range(costs[layer].channels[side]))
            sides[side] = [i for i in remaining if i not in pruned]
    return structure


def remaining_macs(structure: Structure, costs: Costs) -> int:
    """MACs for one image of the network that has the channels of `structure` only."""
    ratios = {}
    for layer, sides in structure.items():
        widths = costs[layer].channels
        ratios[layer] = prod(len(channels) / widths[side] for side, channels in sides.items())
    return round(sum(cost.macs * ratios.get(layer, 1) for layer, cost in costs.items()))
