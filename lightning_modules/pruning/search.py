"""Importance of channels, and which channels to prune for a given number of MACs."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import prod

import torch
from rich.progress import track
from torch import Tensor, nn

from datamodules.datamodule import ImageDataModule
from lightning_modules.classifier import ImageClassifier
from lightning_modules.pruning.groups import ChannelGroup, LayerChannels, LayerCost
from lightning_modules.pruning.structure import Structure

IMAGES_PER_GRADIENT = 8  # in larger batches gradients of opposite sign cancel
WRITE_COST = 256  # MACs in the time of writing one number; measured on two cores: 80 to 230
MIN_WIDTH = 0.1  # fraction of a group's channels that always remains
PRUNED_FRACTIONS = [i / 100 for i in range(1, 100)]  # fractions of all channels that are tried


@dataclass(frozen=True)
class Candidate:
    """Masks (n,) of the remaining channels of each group, and the fraction of MACs they leave."""

    macs_ratio: float
    masks: list[Tensor]


def training_losses(
    module: ImageClassifier, data: ImageDataModule, num_images: int
) -> Iterator[Tensor]:
    """Yields the training loss of small batches, of about `num_images` training images in all."""
    data.prepare_data()
    data.setup("fit")
    weights = None if data.class_weights is None else torch.tensor(data.class_weights)
    num_batches = -(-num_images // data.batch_size)
    loader = islice(data.train_dataloader(), num_batches)
    for batch in track(loader, "importance of channels", num_batches, transient=True):
        batch = data.on_after_batch_transfer(batch, 0)
        parts = (batch[name].split(IMAGES_PER_GRADIENT) for name in ("image", "label"))
        for image, label in zip(*parts, strict=True):
            yield module.compute_loss(module.net(image), label, weights)


def score_groups(
    net: nn.Module,
    groups: Sequence[list[LayerChannels]],
    costs: dict[str, LayerCost],
    losses: Iterable[Tensor],
    cost_power: float = 0.5,
    write_cost: int = 0,
) -> list[ChannelGroup]:
    """First-order importance of each channel: the change of the loss without it, over its cost.

    A gate in front of the layers that read a channel is 1, and 0 once the channel is pruned: the
    loss changes by about its gradient with respect to the gate. The root of the summed squares
    over `losses` is divided by `channel_cost` to the power of `cost_power` (0 ignores the cost).
    Magnitudes of weights are no measure: a batch norm undoes any scale.
    """
    if not groups:
        return []
    readers = sorted(
        {channels.layer for group in groups for channels in group if channels.side == "in"}
    )
    weights = [net.get_submodule(name).get_parameter("weight") for name in readers]
    scores = [torch.zeros(len(group[0].indices), dtype=torch.float64) for group in groups]
    for loss in losses:
        gradients = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        input_gradients = {
            name: _sum_by_input(weight.detach() * gradient)
            for name, weight, gradient in zip(readers, weights, gradients, strict=True)
        }
        for score, group in zip(scores, groups, strict=True):
            score += _gate_gradients(input_gradients, group).square()
    return [
        ChannelGroup(group, score.sqrt() / channel_cost(group, costs, write_cost) ** cost_power)
        for score, group in zip(scores, groups, strict=True)
    ]


def channel_cost(
    group: Sequence[LayerChannels], costs: dict[str, LayerCost], write_cost: int
) -> float:
    """MACs that one channel of a group causes, plus `write_cost` for each number it writes."""
    total = 0.0
    for channels in group:
        cost, count = costs[channels.layer], len(channels.indices[0])
        total += count * cost.macs / cost.channels(channels.side)
        total += count * cost.positions * write_cost if channels.side == "out" else 0
    return total


def find_candidates(
    groups: Sequence[ChannelGroup], costs: dict[str, LayerCost], round_to: int
) -> list[Candidate]:
    """Distinct choices of channels, from the most MACs to the fewest."""
    if not groups:
        return []
    masks_by_macs: dict[int, list[Tensor]] = {}
    for fraction in PRUNED_FRACTIONS:
        masks = select_channels(groups, fraction, round_to)
        masks_by_macs.setdefault(remaining_macs(groups, masks, costs), masks)
    dense = sum(cost.macs for cost in costs.values())
    by_macs = sorted(masks_by_macs.items(), key=lambda item: item[0], reverse=True)
    return [Candidate(macs / dense, masks) for macs, masks in by_macs if macs < dense]


def select_channels(
    groups: Sequence[ChannelGroup], pruned_fraction: float, round_to: int
) -> list[Tensor]:
    """Masks (n,) of each group's remaining channels when about `pruned_fraction` of all are pruned.

    The channels with the lowest scores are pruned, in whichever group they are. The width of a
    group is then rounded to the nearest multiple of `round_to` (or to its full width).
    """
    scores = torch.cat([group.scores for group in groups])
    threshold = scores.sort().values[int(pruned_fraction * len(scores))]
    masks = []
    for group in groups:
        width = int((group.scores >= threshold).sum())
        order = group.scores.argsort(descending=True, stable=True)
        mask = torch.zeros(len(group.scores), dtype=torch.bool)
        mask[order[: round_width(width, len(group.scores), round_to)]] = True
        masks.append(mask)
    return masks


def round_width(width: int, full_width: int, round_to: int) -> int:
    """`width` rounded to the nearest multiple of `round_to`, or to `full_width`."""
    smallest = max(round_to, MIN_WIDTH * full_width)
    allowed = [k for k in range(round_to, full_width, round_to) if k >= smallest] + [full_width]
    return min(allowed, key=lambda k: (abs(k - width), -k))


def to_structure(
    groups: Sequence[ChannelGroup], masks: Sequence[Tensor], costs: dict[str, LayerCost]
) -> Structure:
    """The structure that keeps the channels of `masks`; sides that lose no channel are left out."""
    pruned: dict[tuple[str, str], set[int]] = {}
    for group, mask in zip(groups, masks, strict=True):
        removed = (~mask).nonzero().flatten().tolist()
        for channels in group.layers if removed else []:
            indices = pruned.setdefault((channels.layer, channels.side), set())
            indices.update(index for i in removed for index in channels.indices[i])
    structure: Structure = {}
    for (layer, side), indices in pruned.items():
        remaining = [i for i in range(costs[layer].channels(side)) if i not in indices]
        structure.setdefault(layer, {})[side] = remaining
    return structure


def remaining_macs(
    groups: Sequence[ChannelGroup], masks: Sequence[Tensor], costs: dict[str, LayerCost]
) -> int:
    """MACs for one image of the network that keeps the channels of `masks`."""
    pruned: dict[tuple[str, str], int] = {}
    for group, mask in zip(groups, masks, strict=True):
        for channels in group.layers:
            side = (channels.layer, channels.side)
            pruned[side] = pruned.get(side, 0) + int((~mask).sum()) * len(channels.indices[0])
    macs = [
        cost.macs
        * prod(1 - pruned.get((layer, side), 0) / cost.channels(side) for side in ("out", "in"))
        for layer, cost in costs.items()
    ]
    return round(sum(macs))


def _sum_by_input(weight: Tensor) -> Tensor:
    """Sums (in_channels,) of a tensor with the shape of a layer's weight."""
    return weight.transpose(0, 1).flatten(1).sum(1).double().cpu()


def _gate_gradients(input_gradients: dict[str, Tensor], group: Sequence[LayerChannels]) -> Tensor:
    """Gradients (n,) of the loss with respect to the gates of a group's channels."""
    readers = [
        input_gradients[channels.layer][torch.tensor(channels.indices)].sum(1)
        for channels in group
        if channels.side == "in"
    ]
    return torch.stack(readers).sum(0)
