"""Importance of channels, and which candidates the search finds."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_modules import backbones
from lightning_modules.pruning import search
from lightning_modules.pruning.search import Candidate, PruningTarget, choose_structure
from lightning_modules.pruning.structure import (
    LayerChannels,
    LayerCost,
    find_groups,
    layer_costs,
    outputs_match,
    pruned_copy,
)

SIZE = 32


def random_head(net):
    return net


def random_net(name="test_efficientnet"):
    """Random weights and running statistics, in double precision."""
    torch.manual_seed(0)
    net = random_head(backbones.build(name, 3, image_size=SIZE)).double().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.5), layer.bias.data.normal_(std=0.1)
            layer.running_mean.normal_(std=0.1), layer.running_var.uniform_(0.5, 1.5)
    return net


def random_losses(net, count=3):
    torch.manual_seed(1)
    for _ in range(count):
        image, label = torch.randn(4, 3, SIZE, SIZE).double(), torch.randint(3, (4,))
        yield nn.functional.cross_entropy(net(image), label)


def scored_groups(net, count=3):
    image = torch.zeros(1, 3, SIZE, SIZE).double()
    costs = layer_costs(net, image)
    groups = list(find_groups(net, image, costs))
    return search.score_groups(net, groups, costs, random_losses(net, count)), costs


def scored_by_one_loss(net, image):
    costs = layer_costs(net, image)
    groups = list(find_groups(net, image[:1], costs))
    return search.score_groups(net, groups, costs, mean_square(net, image)), costs


def mean_square(net, image):
    yield net(image).square().mean()


def scale_readers(net, group, channel, factor):
    """Multiplies the weights of all layers that read a channel."""
    for each in group.layers:
        if each.side == "in":
            weight = net.get_submodule(each.layer).weight
            weight.data[:, each.indices[channel]] *= factor


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_a_score_is_the_gate_gradient_over_a_power_of_the_cost(name):
    net = random_net(name)
    groups, costs = scored_groups(net, count=1)
    for group in groups[::3]:
        losses = []
        for factor in (1 + 1e-4, 1 - 1e-4):
            scale_readers(net, group, 1, factor)
            losses.append(next(random_losses(net)).item())
            scale_readers(net, group, 1, 1 / factor)
        gradient = abs(losses[0] - losses[1]) / 2e-4
        expected = gradient / search.channel_cost(group.layers, costs, 0) ** 0.5
        assert float(group.scores[1]) == pytest.approx(expected, rel=1e-3)


def test_scores_do_not_depend_on_scales_that_a_batch_norm_undoes():
    net = random_net()
    before, _ = scored_groups(net)
    for first, second in pairwise(net.modules()):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            first.weight.data *= 100
            second.running_mean *= 100
            second.running_var *= 100**2
            second.eps *= 100**2
    after, _ = scored_groups(net)
    for expected, actual in zip(before, after, strict=True):
        torch.testing.assert_close(actual.scores, expected.scores)


def test_a_channel_without_effect_is_pruned_first():
    net = random_net("test_resnet")
    groups, costs = scored_groups(net)
    widest = max(range(len(groups)), key=lambda i: len(groups[i].scores))
    channel = int(groups[widest].scores.argmax())
    scale_readers(net, groups[widest], channel, 0.0)
    groups, _ = scored_groups(net)
    assert groups[widest].scores[channel] == 0
    first = search.find_candidates(groups, costs, 1)[0].structure
    layer = next(each for each in groups[widest].layers if each.side == "in")
    assert set(layer.indices[channel]).isdisjoint(first[layer.layer]["in"])


def test_the_cost_of_a_channel_counts_macs_and_written_values():
    costs = {
        "a": LayerCost(900, 100, {"out": 3, "in": 3}),
        "b": LayerCost(90, 10, {"out": 3, "in": 3}),
    }
    early, late = ([LayerChannels(name, "out", [[0], [1], [2]])] for name in "ab")
    assert search.channel_cost(early, costs, 0) == 10 * search.channel_cost(late, costs, 0) == 300
    assert search.channel_cost(early, costs, 256) == 300 + 100 * 256


@pytest.mark.parametrize(("limit", "chosen"), [(0.95, 0.9), (0.5, 0.5), (0.31, 0.3), (0.11, 0.1)])
def test_the_largest_candidate_within_the_limit_is_chosen(limit, chosen):
    candidates = [Candidate(i / 10, {}) for i in range(9, 0, -1)]
    within = search.largest_within(candidates, limit, lambda each: each.macs_ratio, "")
    assert within.macs_ratio == chosen


class ChannelMixer(nn.Module):
    """Averages channels in an operation that is no layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 3, padding=1)
        self.next = nn.Conv2d(64, 64, 3, padding=1)
        self.head = nn.Linear(64, 2)

    def forward(self, image):
        x = self.stem(image).relu()
        x = self.next(x - x.mean(1, keepdim=True))
        return self.head(x.mean((2, 3)))


def test_networks_whose_outputs_would_change_are_refused():
    net, image = ChannelMixer(), torch.randn(2, 3, 8, 8)
    groups, costs = scored_by_one_loss(net, image)
    masks = [torch.arange(len(g.scores)) < len(g.scores) // 2 for g in groups]
    assert masks
    assert not outputs_match(net, search.to_structure(groups, masks, costs), image)
    with pytest.raises(ValueError, match="mixer: channels cannot be pruned: the outputs without"):
        choose_structure(net, image, "mixer", PruningTarget(macs=0.6), mean_square(net, image))
    image = torch.randn(2, 3, 64, 64)
    for name in ("test_mambaout", "test_coatnet"):
        net = random_head(backbones.build(name, 3, image_size=64)).eval()
        with pytest.raises(ValueError, match=f"{name}: no channels can be pruned"):
            choose_structure(net, image, name, PruningTarget(macs=0.6), mean_square(net, image))


@pytest.mark.parametrize("name", [
    "test_efficientnet", "test_convnext", "test_vit", "residual_attention",
    pytest.param("densenet121", marks=pytest.mark.exhaustive),
])  # fmt: skip
def test_pruned_backbones_compute_the_same_as_with_zeroed_channels(name):
    """Norms over channels, attention heads and groups are not pruned."""
    torch.manual_seed(0)
    size = 160 if name == "test_vit" else 64
    net = random_head(backbones.build(name, 3, image_size=size)).eval()
    image = torch.randn(2, 3, size, size)
    groups, costs = scored_by_one_loss(net, image)
    candidates = search.find_candidates(groups, costs, 8)
    candidate = candidates[len(candidates) // 2]
    structure = candidate.structure
    assert outputs_match(net, structure, image)
    pruned_costs = layer_costs(pruned_copy(net, structure), image)
    macs, dense_macs = (sum(c.macs for c in of_net.values()) for of_net in (pruned_costs, costs))
    assert macs / dense_macs == pytest.approx(candidate.macs_ratio)
