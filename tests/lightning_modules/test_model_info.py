"""Size, compute and CAM layers of the shipped backbones, and each from training to checkpoint."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lightning_modules import ImageClassifier, backbones, checkpoints
from lightning_modules.model_info import (
    SHIPPED_BACKBONES,
    backbone_info,
    cam_layer,
    count_macs,
    layer_macs,
)
from tests.lightning_modules.families import one_per_family

PUBLISHED_SIZES = {  # million parameters with a small head
    "convnextv2_base": 87.7,
    "tf_efficientnetv2_s": 20.2,
    "maxvit_tiny_tf_224": 30.4,
    "swin_tiny_patch4_window7_224": 27.5,
    "densenet121": 6.96,
    "resnet50": 23.5,
    "efficientnet_b2": 7.71,
}


CONFIGS = sorted((Path(__file__).parents[2] / "configs/model").glob("*.yaml"))


def architecture(name: str) -> str:
    return name.split(".")[0]


def test_the_backbones_of_all_shipped_configs_are_listed() -> None:
    configured = {yaml.safe_load(f.read_text())["init_args"].get("backbone", "") for f in CONFIGS}
    real_names = {architecture(name) for name in configured if not name.startswith("test_")} - {""}
    assert real_names == set(map(architecture, SHIPPED_BACKBONES))


@pytest.mark.parametrize("name", SHIPPED_BACKBONES, ids=architecture)
def test_info_of_the_shipped_backbones(name: str) -> None:
    info = backbone_info(name)
    if architecture(name) in PUBLISHED_SIZES:
        assert info.parameters / 1e6 == pytest.approx(PUBLISHED_SIZES[architecture(name)], rel=0.01)
    assert info.cam is not None
    assert min(info.cam.height, info.cam.width) >= 7
    assert info.license != "unknown"
    assert info.is_commercial == (not name.startswith("convnextv2"))


def test_macs_equal_the_published_number() -> None:
    assert backbone_info("resnet50").macs == pytest.approx(4.09e9, rel=0.01)


def test_macs_of_layers_equal_those_of_the_network_and_a_count_by_hand() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, 2, 1, groups=8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2),
    )  # fmt: skip
    uses = layer_macs(net, torch.zeros(1, 3, 16, 16))
    expected = {"0.weight": 8 * 27 * 256, "2.weight": 8 * 9 * 64, "5.weight": 16}
    assert {use.name: use.macs for use in uses} == expected
    assert sum(expected.values()) == count_macs(net, 16)
    assert net.training


@pytest.mark.parametrize(
    ("name", "size", "layer", "layout"),
    [
        ("swin_tiny_patch4_window7_224", 224, "layers.3.blocks.1.norm1", "NHWC"),
        ("swinv2_tiny_window8_256", 256, "layers.3", "NHWC"),
        ("densenet121", 224, "features.norm5", "NCHW"),
        ("test_resnet", 64, "layer2", "NCHW"),
        ("test_vit", 160, "blocks.5.norm1", "NLC"),
        ("test_resnet", 32, "layer1", "NCHW"),
    ],
)
def test_cam_layer_follows_the_input_size(name: str, size: int, layer: str, layout: str) -> None:
    net = backbones.build(name, 2, image_size=size)
    recommended = cam_layer(net, (3, size, size))
    assert recommended is not None
    assert (recommended.name, recommended.layout) == (layer, layout)


@pytest.mark.parametrize("name", ["swinv2_tiny_window8_256", "test_vit", "test_coatnet"])
def test_feature_maps_have_the_recorded_size(name: str) -> None:
    net = backbones.build(name, 2, image_size=128).eval()
    layer, outputs = cam_layer(net, (3, 128, 128)), []
    assert layer is not None
    net.get_submodule(layer.name).register_forward_hook(lambda _, __, out: outputs.append(out))
    net(torch.rand(2, 3, 128, 128))
    maps = layer.feature_maps(outputs[0])
    assert maps.shape[0] == 2
    assert maps.shape[2:] == (layer.height, layer.width)


def test_cam_layer_does_not_change_the_network() -> None:
    net = backbones.build("test_resnet", 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.get_submodule("layer1").eval()
    cam_layer(net, (3, 64, 64))
    assert net.training
    assert not net.get_submodule("layer1").training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_a_network_without_feature_maps_has_no_cam_layer() -> None:
    assert cam_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2)) is None


def test_commercial_only_refuses_other_licenses() -> None:
    with pytest.raises(ValueError, match=r"the weights of convnextv2_base are under 'cc-by-nc"):
        backbones.build("convnextv2_base", 2, pretrained="x.pth", commercial_only=True)
    assert backbones.build(
        "convnextv2_atto", 2, commercial_only=True
    )  # no published weights are used


@pytest.mark.parametrize("name", one_per_family(SHIPPED_BACKBONES), ids=architecture)
def test_each_backbone_trains_and_is_restored_from_its_checkpoint(
    name: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    module = ImageClassifier(["a", "b"], name, image_size=64)
    image, label = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    optimizer, losses = torch.optim.Adam(module.parameters(), 5e-5), []
    for _ in range(3):
        loss = module.compute_loss(module.net(image), label, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]
    saved = save(module.eval(), tmp_path / "x.ckpt")
    restored, _ = checkpoints.load(saved)
    with torch.no_grad():
        assert torch.equal(restored(image), module(image))
    saved.unlink()


def save(module: ImageClassifier, path: Path) -> Path:
    checkpoint = {"state_dict": module.state_dict()}
    checkpoints.write_block(
        checkpoint,
        module="ImageClassifier",
        init_args=module.init_args,
        class_names=module.class_names,
        preprocess={},
        manifest_digest="",
        train_ids=torch.empty(0, dtype=torch.int64),
        metrics={},
        measured_weights="",
        epoch=1,
    )
    torch.save(checkpoint, path)
    return path
