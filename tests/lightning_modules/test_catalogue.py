"""Facts of the known backbones, their CAM layers, and each from first step to checkpoint."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from lightning_modules import ImageClassifier, backbones, checkpoints
from lightning_modules.model_info import KNOWN, cam_layer, facts

PUBLISHED = {  # million parameters with a small head
    "convnextv2_base": 87.7,
    "tf_efficientnetv2_s": 20.2,
    "maxvit_tiny_tf_224": 30.4,
    "swin_tiny_patch4_window7_224": 27.5,
    "densenet121": 6.96,
    "resnet50": 23.5,
    "efficientnet_b2": 7.71,
}


CONFIGS = sorted((Path(__file__).parents[2] / "configs/model").glob("*.yaml"))


def bare(name: str) -> str:
    return name.split(".")[0]


def test_what_the_shipped_configs_train_is_known() -> None:
    trained = {yaml.safe_load(f.read_text())["init_args"].get("backbone", "") for f in CONFIGS}
    real = {bare(name) for name in trained if not name.startswith("test_")} - {""}
    assert real == set(map(bare, KNOWN))


@pytest.mark.parametrize("name", KNOWN, ids=bare)
def test_facts_of_the_known(name: str) -> None:
    found = facts(name)
    if bare(name) in PUBLISHED:
        assert found.parameters / 1e6 == pytest.approx(PUBLISHED[bare(name)], rel=0.01)
    assert found.cam is not None
    assert min(found.cam.height, found.cam.width) >= 7
    assert found.license != "unknown"
    assert found.commercial == (not name.startswith("convnextv2"))


def test_macs_of_a_layer_by_hand() -> None:
    found = facts("resnet50")
    assert found.macs == pytest.approx(4.09e9, rel=0.01)  # as published


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
    found = cam_layer(net, (3, size, size))
    assert found is not None
    assert (found.name, found.layout) == (layer, layout)


@pytest.mark.parametrize("name", ["swinv2_tiny_window8_256", "test_vit", "test_coatnet"])
def test_maps_have_the_layout_that_is_told(name: str) -> None:
    net = backbones.build(name, 2, image_size=128).eval()
    found, seen = cam_layer(net, (3, 128, 128)), []
    assert found is not None
    net.get_submodule(found.name).register_forward_hook(lambda _, __, out: seen.append(out))
    net(torch.rand(2, 3, 128, 128))
    maps = found.maps(seen[0])
    assert maps.shape[0] == 2
    assert maps.shape[2:] == (found.height, found.width)


def test_looking_for_the_layer_changes_nothing() -> None:
    net = backbones.build("test_resnet", 2)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.get_submodule("layer1").eval()
    cam_layer(net, (3, 64, 64))
    assert net.training
    assert not net.get_submodule("layer1").training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not any(module._forward_hooks for module in net.modules())


def test_no_map_no_layer() -> None:
    assert cam_layer(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), (3, 2, 2)) is None


def test_commercial_only_refuses_the_others() -> None:
    with pytest.raises(ValueError, match=r"the weights of convnextv2_base are under 'cc-by-nc"):
        backbones.build("convnextv2_base", 2, pretrained="x.pth", commercial_only=True)
    assert backbones.build("convnextv2_atto", 2, commercial_only=True)  # weights of our own


@pytest.mark.parametrize("name", KNOWN, ids=bare)
def test_each_learns_and_comes_back_from_its_file(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = ImageClassifier(["a", "b"], name, image_size=64)
    image, label = torch.rand(4, 3, 64, 64), torch.tensor([0, 1, 0, 1])
    optimizer, losses = torch.optim.Adam(module.parameters(), 5e-5), []
    for _ in range(5):
        loss = module.cost(module.net(image), label, None)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[1:]) < losses[0]
    saved = save(module.eval(), tmp_path / "x.ckpt")
    again, _ = checkpoints.load(saved)
    with torch.no_grad():
        assert torch.equal(again(image), module(image))
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
        train_ids=checkpoints.id_hashes([]),
        metrics={},
        measured_weights="",
        epoch=1,
    )
    torch.save(checkpoint, path)
    return path
