"""Which channels the loss hangs on."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from lightning_modules import backbones
from lightning_modules.pruning import groups as dependencies
from lightning_modules.pruning import importance, search

SIZE = 32


def network(name="test_efficientnet"):
    """Weights and running statistics by chance, in double precision."""
    torch.manual_seed(0)
    net = backbones.build(name, 3, image_size=SIZE).double().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.uniform_(0.5, 1.5), layer.bias.data.normal_(std=0.1)
            layer.running_mean.normal_(std=0.1), layer.running_var.uniform_(0.5, 1.5)
    return net


def parts(net, count=3):
    """The losses of a few pictures."""
    torch.manual_seed(1)
    for _ in range(count):
        image, label = torch.randn(4, 3, SIZE, SIZE).double(), torch.randint(3, (4,))
        yield nn.functional.cross_entropy(net(image), label)


def weighed(net, count=3):
    """Its groups, with scores."""
    image = torch.zeros(1, 3, SIZE, SIZE).double()
    price = dependencies.costs(net, image)
    together = list(dependencies.groups(net, image, price))
    return importance.weighed(net, together, price, parts(net, count)), price


def scale(net, group, channel, by):
    """Multiplies whatever reads a channel."""
    for cut in group.cuts:
        if cut.side == "in":
            weight = net.get_submodule(cut.layer).weight
            weight.data[:, cut.positions[channel]] *= by


@pytest.mark.parametrize("name", ["test_efficientnet", "test_resnet"])
def test_a_score_is_the_slope_along_a_gate_over_a_power_of_its_cost(name):
    net = network(name)
    groups, price = weighed(net, count=1)
    for group in groups[::3]:
        there = []
        for by in (1 + 1e-4, 1 - 1e-4):
            scale(net, group, 1, by)
            there.append(next(parts(net)).item())
            scale(net, group, 1, 1 / by)
        slope = abs(there[0] - there[1]) / 2e-4
        wanted = slope / importance.cost(group.cuts, price, 0) ** 0.5
        assert float(group.scores[1]) == pytest.approx(wanted, rel=1e-3)


def test_scales_that_a_batch_norm_takes_away_change_nothing():
    net = network()
    before, _ = weighed(net)
    for first, second in pairwise(net.modules()):
        if isinstance(first, nn.Conv2d) and isinstance(second, nn.BatchNorm2d):
            first.weight.data *= 100
            second.running_mean *= 100
            second.running_var *= 100**2
            second.eps *= 100**2
    after, _ = weighed(net)
    for one, other in zip(before, after, strict=True):
        torch.testing.assert_close(one.scores, other.scores)


def test_a_channel_that_nothing_hangs_on_goes_first():
    net = network("test_resnet")
    groups, price = weighed(net)
    at = max(range(len(groups)), key=lambda i: len(groups[i].scores))
    most = int(groups[at].scores.argmax())
    scale(net, groups[at], most, 0.0)
    again, _ = weighed(net)
    assert again[at].scores[most] == 0
    assert not search.candidates(again, price, 1)[0].staying[at][most]


def test_a_channel_costs_what_goes_with_it():
    price = {"a": search.Cost(900, 100, 3, 3), "b": search.Cost(90, 10, 3, 3)}
    near, far = ([search.Cut(name, "out", [[0], [1], [2]])] for name in "ab")
    assert importance.cost(near, price, 0) == 10 * importance.cost(far, price, 0) == 300
    assert importance.cost(near, price, 256) == 300 + 100 * 256
