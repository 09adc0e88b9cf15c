"""The residual network with spatial attention: input sizes, attention map, stages, learning."""

import pytest
import timm
import torch

from lightning_modules import backbones
from lightning_modules.freezing import parameter_stages
from lightning_modules.residual_attention import ResidualAttention, SpatialAttention


@pytest.fixture
def net() -> ResidualAttention:
    torch.manual_seed(0)
    built = backbones.build("residual_attention", 2, widths=(8, 16, 24), drop_rate=0.5)
    assert isinstance(built, ResidualAttention)
    return built


def test_it_is_registered_in_timm() -> None:
    assert timm.is_model("residual_attention")
    assert "residual_attention" in backbones.nearest_names("residual_atention")


@pytest.mark.parametrize("shape", [(32, 32), (57, 91), (224, 224)])
def test_any_input_size(net: ResidualAttention, shape: tuple[int, int]) -> None:
    assert net(torch.rand(2, 3, *shape)).shape == (2, 2)


def test_attention_weights_are_between_0_and_1(net: ResidualAttention) -> None:
    features = net.stages(net.stem(torch.rand(2, 3, 64, 64)))
    weighted = net.attention(features)
    assert weighted.shape == features.shape == (2, 24, 8, 8)
    assert ((weighted >= 0) & (weighted <= features)).all()


def test_attention_multiplies_each_position() -> None:
    attention, features = SpatialAttention(), torch.rand(1, 4, 5, 5)
    torch.nn.init.zeros_(attention.conv.weight)
    torch.nn.init.zeros_(attention.conv.bias)
    assert torch.allclose(attention(features), features / 2)


def test_stages_for_freezing(net: ResidualAttention) -> None:
    stages = parameter_stages(net)
    assert stages["stem.0.weight"] == 0
    assert stages["stages.2.0.conv1.weight"] == 3
    assert stages["attention.conv.weight"] == stages["head.weight"] == 4


def test_dropout_is_active_in_training_only(net: ResidualAttention) -> None:
    image = torch.rand(2, 3, 32, 32)
    net.train()
    assert not torch.equal(net(image), net(image))
    net.eval()
    assert torch.equal(net(image), net(image))


def test_without_classes_it_returns_the_pooled_features(net: ResidualAttention) -> None:
    net.eval().reset_classifier(0)
    image = torch.rand(2, 3, 32, 32)
    assert torch.equal(net(image), net.forward_head(net.forward_features(image), pre_logits=True))
    assert net(image).shape == (2, 24)


def test_it_learns_to_detect_a_bright_square() -> None:
    torch.manual_seed(0)
    net = backbones.build("residual_attention", 2, widths=(8, 16, 24), drop_rate=0.0)
    generator = torch.Generator().manual_seed(0)
    images, labels = torch.rand(128, 3, 32, 32, generator=generator), torch.arange(128) % 2
    images[labels == 1, :, 8:16, 8:16] += 0.7
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for _ in range(15):
        for rows in torch.randperm(96, generator=generator).split(32):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(images[rows]), labels[rows]).backward()
            optimizer.step()
    net.eval()
    assert (net(images[96:]).argmax(1) == labels[96:]).float().mean() > 0.95
