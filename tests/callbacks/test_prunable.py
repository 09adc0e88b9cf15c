import pytest
import timm
import torch
from torch import nn

from callbacks.sparse_training.masked_weights import find_prunable
from lightning_modules import OneVsOneClassifier

IMAGE = torch.zeros(1, 3, 64, 64)


def test_excluded_weights_of_an_efficientnet_and_the_reasons():
    """Stem, classifier, depthwise and squeeze-excite layers, by their names in timm."""
    net = timm.create_model("efficientnet_b0", num_classes=4)
    prunable = find_prunable(net, torch.zeros(1, 3, 96, 96))
    names = [weight.name for weight in prunable.weights]
    assert all(".se." not in name and "conv_dw" not in name for name in names)
    assert prunable.excluded["conv_stem.weight"] == "reads the image"
    assert prunable.excluded["classifier.weight"] == "computes the logits"
    assert "depthwise" in prunable.excluded["blocks.3.0.conv_dw.weight"]
    assert "squeeze-excite" in prunable.excluded["blocks.3.0.se.conv_reduce.weight"]
    assert "conv_head.weight" in names
    assert set(names).isdisjoint(prunable.excluded)
    assert {name for name, _ in net.named_parameters()} == set(names) | set(prunable.excluded)


def test_first_and_last_layer_of_every_trunk_are_excluded():
    net = OneVsOneClassifier(["a", "b", "c"], "test_resnet", trunks="pair").eval()
    prunable = find_prunable(net, IMAGE, exclude=["nothing"])
    for k in range(3):
        assert prunable.excluded[f"net.trunks.{k}.conv1.0.weight"] == "reads the image"
        assert prunable.excluded[f"net.trunks.{k}.fc.weight"] == "computes the logits"


def test_a_large_kernel_with_one_output_position_is_prunable():
    net = timm.create_model("resnet10t", num_classes=4)
    prunable = find_prunable(net, torch.zeros(1, 3, 32, 32))  # the last stage is 1 x 1
    names = {weight.name for weight in prunable.weights}
    assert {"layer4.0.conv1.weight", "layer4.0.conv2.weight"} <= names
    assert "squeeze-excite" in prunable.excluded["layer4.0.downsample.1.weight"]


def test_the_macs_of_a_resnet50_are_those_of_the_literature():
    """4.09 G multiply-accumulates at 224 px."""
    with torch.device("meta"):
        net = timm.create_model("resnet50")
        prunable = find_prunable(net, torch.zeros(1, 3, 224, 224))
    assert prunable.macs == pytest.approx(4.09e9, rel=0.005)


def test_the_module_is_not_changed():
    net = timm.create_model("test_resnet", num_classes=3).train()
    net.layer1.eval()
    state = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    modes, rng_state = [m.training for m in net.modules()], torch.get_rng_state()
    find_prunable(net, IMAGE)
    assert all(torch.equal(state[name], tensor) for name, tensor in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(rng_state, torch.get_rng_state())
    assert not any(m._forward_hooks for m in net.modules())


class TokenNet(nn.Module):
    """Attention with packed weights, and two linear layers that share one weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 64, 8, stride=8)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.one = nn.Linear(64, 64, bias=False)
        self.two = nn.Linear(64, 64, bias=False)
        self.two.weight = self.one.weight
        self.head = nn.Linear(64, 3)

    def forward(self, image):
        x = self.stem(image).flatten(2).transpose(1, 2)
        x = self.attention(x, x, x)[0]
        return self.head(self.two(self.one(x).relu()).mean(1))


def test_packed_attention_is_prunable_and_a_shared_weight_counts_once():
    prunable = find_prunable(TokenNet(), IMAGE)
    positions = {weight.name: weight.positions for weight in prunable.weights}
    assert positions == {"attention.in_proj_weight": 64, "attention.out_proj.weight": 64,
                         "one.weight": 128}  # fmt: skip


def test_a_shared_weight_is_excluded_if_one_of_its_uses_is():
    net = TokenNet()
    net.head = nn.Linear(64, 64, bias=False)
    net.head.weight = net.one.weight
    assert "one.weight" not in [weight.name for weight in find_prunable(net, IMAGE).weights]


def test_a_network_without_prunable_weights_is_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 62 * 62, 3))
    message = "no weight can be pruned: computes the logits; reads the image"
    with pytest.raises(ValueError, match=message):
        find_prunable(net, IMAGE)


def test_quantized_weights_are_refused():
    net = TokenNet()
    net.one.weight = nn.Parameter(torch.zeros(64, 64, dtype=torch.int8), requires_grad=False)
    net.one.forward = net.two.forward = lambda x: x @ net.one.weight.float()
    net.one.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"one\.weight: quantized weights"):
        find_prunable(net, IMAGE)
