import copy
import json

import pytest
import torch
from torch import nn

from lightning_modules.pruning.structure import (
    compose_structures,
    prune_channels,
    zero_pruned_channels,
)


def make_net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6),
              nn.Conv2d(6, 5, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
              nn.Linear(5, 2)]  # fmt: skip
    net = nn.Sequential(*layers)
    net[1].running_mean.normal_()
    return net.eval()


STRUCTURE = {"0": {"out": [0, 2, 5]}, "1": {"out": [0, 2, 5]}, "3": {"out": [0, 2, 5]},
             "4": {"in": [0, 2, 5], "out": [1, 4]}, "7": {"in": [1, 4]}}  # fmt: skip


def test_removed_channels_equal_zeroed_channels():
    zeroed, pruned = make_net(), make_net()
    prune_channels(pruned, json.loads(json.dumps(STRUCTURE)))
    assert (pruned[0].out_channels, pruned[1].num_features, pruned[3].groups) == (3, 3, 3)
    assert (pruned[4].in_channels, pruned[4].out_channels, pruned[7].in_features) == (3, 2, 2)
    zero_pruned_channels(zeroed, STRUCTURE)
    image = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(pruned(image), zeroed(image))
    assert torch.equal(pruned[0].weight, make_net()[0].weight[[0, 2, 5]])


def test_pruning_does_not_change_requires_grad():
    net = make_net()
    net[0].requires_grad_(False)
    prune_channels(net, STRUCTURE)
    assert not net[0].weight.requires_grad
    assert net[4].weight.requires_grad
    assert not net[1].running_var.requires_grad


def test_a_composed_structure_equals_pruning_twice():
    second = {"0": {"out": [1, 2]}, "1": {"out": [1, 2]}, "3": {"out": [1, 2]}, "4": {"in": [1, 2]}}
    twice, once = make_net(), make_net()
    prune_channels(twice, STRUCTURE)
    prune_channels(twice, second)
    prune_channels(once, compose_structures(STRUCTURE, second))
    expected, actual = twice.state_dict(), once.state_dict()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert STRUCTURE["0"]["out"] == [0, 2, 5]


@pytest.mark.parametrize(("structure", "message"), [
    ({"9": {"out": [0]}}, "no layer '9'"),
    ({"2": {"out": [0]}}, "2 is a ReLU, which cannot be pruned"),
    ({"0": {"up": [0]}}, r"0 has \{'up': \[0\]\}; a side is 'out' or 'in'"),
    ({"0": {"out": []}}, "0, out has"),
    ({"0": {"out": [1, 0]}}, "0, out has"),
    ({"0": {"out": [0, 6]}}, r"0, out has \[0, 6\], not some of the channels 0..5"),
    ({"0": {"out": [-1, 0]}}, "0, out has"),
    ({"0": {"out": [0.0, 1.0]}}, "0, out has"),
    ({"0": {"out": "01"}}, "0, out has"),
    ({"0": {"out": 3}}, "0, out has 3, not"),
    ({"0": 3}, "0 has 3; a side"),
    ({"0": ["out"]}, r"0 has \['out'\]"),
])  # fmt: skip
def test_invalid_structures_are_refused(structure, message):
    with pytest.raises(ValueError, match=message):
        prune_channels(copy.deepcopy(make_net()), structure)
