"""Networks with fewer channels, from plain data."""

import copy
import json

import pytest
import torch
from torch import nn

from lightning_modules.pruning import structure


def net():
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6),
              nn.Conv2d(6, 5, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
              nn.Linear(5, 2)]  # fmt: skip
    made = nn.Sequential(*layers)
    made[1].running_mean.normal_()
    return made.eval()


KEPT = {"0": {"out": [0, 2, 5]}, "1": {"out": [0, 2, 5]}, "3": {"out": [0, 2, 5]},
        "4": {"in": [0, 2, 5], "out": [1, 4]}, "7": {"in": [1, 4]}}  # fmt: skip


def test_what_is_left_computes_what_it_computed():
    whole, small = net(), net()
    structure.narrow(small, json.loads(json.dumps(KEPT)))
    assert (small[0].out_channels, small[1].num_features, small[3].groups) == (3, 3, 3)
    assert (small[4].in_channels, small[4].out_channels, small[7].in_features) == (3, 2, 2)
    structure.silenced(whole, KEPT)
    image = torch.randn(2, 3, 9, 9)
    torch.testing.assert_close(small(image), whole(image))
    assert torch.equal(small[0].weight, net()[0].weight[[0, 2, 5]])


def test_a_frozen_layer_stays_frozen():
    small = net()
    small[0].requires_grad_(False)
    structure.narrow(small, KEPT)
    assert not small[0].weight.requires_grad
    assert small[4].weight.requires_grad
    assert not small[1].running_var.requires_grad


def test_two_structures_are_one():
    then = {"0": {"out": [1, 2]}, "1": {"out": [1, 2]}, "3": {"out": [1, 2]}, "4": {"in": [1, 2]}}
    one, other = net(), net()
    structure.narrow(one, KEPT)
    structure.narrow(one, then)
    structure.narrow(other, structure.composed(KEPT, then))
    a, b = one.state_dict(), other.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert KEPT["0"]["out"] == [0, 2, 5]


@pytest.mark.parametrize(("kept", "message"), [
    ({"9": {"out": [0]}}, "no layer '9'"),
    ({"2": {"out": [0]}}, "2 is a ReLU, which is not narrowed"),
    ({"0": {"up": [0]}}, r"0 says \{'up': \[0\]\}; a side is 'out' or 'in'"),
    ({"0": {"out": []}}, "0, out keeps"),
    ({"0": {"out": [1, 0]}}, "0, out keeps"),
    ({"0": {"out": [0, 6]}}, r"0, out keeps \[0, 6\], not some of 0..5"),
    ({"0": {"out": [-1, 0]}}, "0, out keeps"),
    ({"0": {"out": [0.0, 1.0]}}, "0, out keeps"),
    ({"0": {"out": "01"}}, "0, out keeps"),
    ({"0": {"out": 3}}, "0, out keeps 3, not"),
    ({"0": 3}, "0 says 3; a side"),
    ({"0": ["out"]}, r"0 says \['out'\]"),
])  # fmt: skip
def test_a_structure_that_does_not_fit_is_refused(kept, message):
    with pytest.raises(ValueError, match=message):
        structure.narrow(copy.deepcopy(net()), kept)
