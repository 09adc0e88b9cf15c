import pytest
import timm
import torch
from torch import nn

from callbacks.sparse_training.prunable import prunable
from lightning_modules import OneVsOneClassifier

IMAGE = torch.zeros(1, 3, 64, 64)


def test_what_is_left_out_of_an_efficientnet_and_why():
    """Stem, head, depthwise and squeeze-excite stay whole, by the names of timm's layers."""
    net = timm.create_model("efficientnet_b0", num_classes=4)
    found = prunable(net, torch.zeros(1, 3, 96, 96))
    names = [layer.name for layer in found.layers]
    assert all(".se." not in n and "conv_dw" not in n for n in names)
    assert found.left_out["conv_stem.weight"] == "sees the image"
    assert found.left_out["classifier.weight"] == "makes the logits"
    assert "depthwise" in found.left_out["blocks.3.0.conv_dw.weight"]
    assert "squeeze-excite" in found.left_out["blocks.3.0.se.conv_reduce.weight"]
    assert "conv_head.weight" in names
    assert set(names).isdisjoint(found.left_out)
    assert {n for n, _ in net.named_parameters()} == set(names) | set(found.left_out)


def test_every_trunk_of_the_pairs_has_ends_of_its_own():
    net = OneVsOneClassifier(["a", "b", "c"], "test_resnet", trunks="pair").eval()
    found = prunable(net, IMAGE, exclude=["nothing"])
    for k in range(3):
        assert found.left_out[f"net.trunks.{k}.conv1.0.weight"] == "sees the image"
        assert found.left_out[f"net.trunks.{k}.fc.weight"] == "makes the logits"


def test_a_kernel_that_sees_one_pixel_of_a_small_picture_is_no_squeeze():
    net = timm.create_model("resnet10t", num_classes=4)
    found = prunable(net, torch.zeros(1, 3, 32, 32))  # the last stage is 1 x 1
    kept = {layer.name for layer in found.layers}
    assert {"layer4.0.conv1.weight", "layer4.0.conv2.weight"} <= kept
    assert "squeeze-excite" in found.left_out["layer4.0.downsample.1.weight"]


def test_macs_of_a_known_network_are_counted():
    """ResNet-50 at 224 px: 4.09 G multiply-accumulates, as its authors and timm say."""
    with torch.device("meta"):
        net = timm.create_model("resnet50")
        found = prunable(net, torch.zeros(1, 3, 224, 224))
    assert found.macs == pytest.approx(4.09e9, rel=0.005)


def test_the_dry_run_leaves_no_trace():
    net = timm.create_model("test_resnet", num_classes=3).train()
    net.layer1.eval()
    state, modes = (
        {k: v.clone() for k, v in net.state_dict().items()},
        [m.training for m in net.modules()],
    )
    before = torch.get_rng_state()
    prunable(net, IMAGE)
    assert all(torch.equal(state[k], v) for k, v in net.state_dict().items())
    assert [m.training for m in net.modules()] == modes
    assert torch.equal(before, torch.get_rng_state())
    assert not any(m._forward_hooks for m in net.modules())


class Tokens(nn.Module):
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


def test_packed_attention_is_named_and_tied_weights_count_once():
    found = prunable(Tokens(), IMAGE)
    positions = {layer.name: layer.positions for layer in found.layers}
    assert positions == {"attention.in_proj_weight": 64, "attention.out_proj.weight": 64,
                         "one.weight": 128}  # fmt: skip


def test_one_left_out_use_leaves_a_tied_weight_out():
    net = Tokens()
    net.head = nn.Linear(64, 64, bias=False)
    net.head.weight = net.one.weight
    assert "one.weight" not in [layer.name for layer in prunable(net, IMAGE).layers]


def test_quantized_and_nothing_are_refused():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 62 * 62, 3))
    with pytest.raises(
        ValueError, match="nothing is left to prune: makes the logits; sees the image"
    ):
        prunable(net, IMAGE)
    net = Tokens()
    net.one.weight = nn.Parameter(torch.zeros(64, 64, dtype=torch.int8), requires_grad=False)
    net.one.forward = net.two.forward = lambda x: x @ net.one.weight.float()
    net.one.register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"one\.weight: quantized weights"):
        prunable(net, IMAGE)
