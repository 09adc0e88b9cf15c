"""Backbones: names, sizes, options and weight files that are accepted or refused."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from torch import nn

from consilium.cli.main import main
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier, backbones, checkpoints
from tests.conftest import Tiny
from tests.consilium.untrained import save_checkpoint


def predict(net: nn.Module, size: int) -> torch.Tensor:
    with torch.no_grad():
        return net.eval()(torch.linspace(-1, 1, 3 * size * size).view(1, 3, size, size))


@pytest.fixture
def weight_file(tmp_path: Path) -> Path:
    path = tmp_path / "vit.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit", num_classes=7).state_dict(), path)
    return path


@pytest.mark.parametrize("name", ["resnet10t", "test_vit", "test_maxvit", "test_coatnet"])
def test_a_timm_name_at_another_input_size(name: str) -> None:
    assert predict(backbones.build(name, 3, image_size=96), 96).shape == (1, 3)


def test_options_are_passed_to_timm() -> None:
    net = backbones.build("resnet10t", 2, in_chans=1, drop_rate=0.25)
    assert net.get_submodule("conv1.0").weight.shape[1] == 1
    assert net.drop_rate == 0.25


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"backbone_args: resnet10t refuses \['drop_rat'\]"):
        backbones.build("resnet10t", 2, drop_rat=0.1)


def test_an_unknown_name_is_an_error_that_lists_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"unknown name 'resnet5O'.*resnet50"):
        backbones.build("resnet5O", 2)


def test_an_unknown_tag_is_an_error_that_lists_the_tags() -> None:
    with pytest.raises(ValueError, match=r"convnext_tiny\.fb_in1k"):
        backbones.build("convnext_tiny.fb_in1", 2)


def test_an_unsupported_size_is_an_error_that_lists_the_supported_ones() -> None:
    with pytest.raises(
        ValueError, match=r"test_coatnet does not accept 100 .* it accepts .*96, 128"
    ):
        backbones.build("test_coatnet", 2, image_size=100)


def test_a_weight_file_is_loaded_except_for_the_head(weight_file: Path) -> None:
    stored = safetensors.torch.load_file(weight_file)
    torch.manual_seed(1)
    net = backbones.build("test_vit", 3, pretrained=str(weight_file)).state_dict()
    assert all(torch.equal(net[k], stored[k]) for k in stored if not k.startswith("head."))
    assert torch.equal(net["head.weight"], torch.zeros(3, 64))


def test_a_head_of_the_same_shape_is_loaded(weight_file: Path) -> None:
    stored = safetensors.torch.load_file(weight_file)
    net = backbones.build("test_vit", 7, pretrained=str(weight_file)).state_dict()
    assert torch.equal(net["head.weight"], stored["head.weight"])


@pytest.mark.parametrize("num_classes", [3, 1000])
def test_only_a_downloaded_head_of_other_classes_is_new(
    num_classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    published = timm.create_model("test_efficientnet").state_dict()
    load = "timm.models._builder.load_state_dict_from_hf"
    monkeypatch.setattr(load, lambda *args, **kwargs: dict(published))
    net = backbones.build("test_efficientnet", num_classes, pretrained=True).state_dict()
    assert torch.equal(net["conv_stem.weight"], published["conv_stem.weight"])
    expected = published["classifier.weight"] if num_classes == 1000 else torch.zeros(3, 256)
    assert torch.equal(net["classifier.weight"], expected)


def test_weights_are_resized_to_the_image_size(weight_file: Path) -> None:
    small = backbones.build("test_vit", 7, pretrained=str(weight_file), image_size=64)
    assert small.get_parameter("pos_embed").shape[1] == 17
    assert predict(small, 64).isfinite().all()


def test_weights_are_adapted_to_the_input_channels(tmp_path: Path) -> None:
    net = timm.create_model("resnet10t", num_classes=7)
    torch.save(net.state_dict(), tmp_path / "r.pth")
    grayscale = backbones.build("resnet10t", 7, pretrained=str(tmp_path / "r.pth"), in_chans=1)
    image = torch.rand(1, 1, 64, 64)
    expected = net.eval()(image.expand(1, 3, 64, 64))
    assert torch.allclose(grayscale.eval()(image), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("blocks.2.attn.qkv.weight"), r"lacks blocks\.2\.attn\.qkv\.weight"),
        (lambda w: w.update(extra=torch.ones(1)), "unknown to the network: extra"),
        (lambda w: w.update({"norm.bias": torch.ones(5)}), r"other shapes for norm\.bias"),
    ],
)
def test_missing_unknown_and_misshaped_weights_are_named(
    weight_file: Path, change: object, message: str
) -> None:
    weights = safetensors.torch.load_file(weight_file)
    change(weights)
    safetensors.torch.save_file(weights, weight_file)
    with pytest.raises(ValueError, match=message):
        backbones.build("test_vit", 3, pretrained=str(weight_file))


def test_weights_of_another_network_are_refused(weight_file: Path) -> None:
    with pytest.raises(ValueError, match=r"lacks conv1\.0\.weight"):
        backbones.build("resnet10t", 3, pretrained=str(weight_file))


class ExecutesCode:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("executed"),))


def test_code_in_a_weight_file_is_not_executed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"head.weight": ExecutesCode()}, "code.pth")
    with pytest.raises(ValueError, match=r"'code\.pth' is not a readable weight file"):
        backbones.build("test_vit", 3, pretrained="code.pth")
    assert not Path("executed").exists()


@pytest.mark.parametrize("content", [b"", b"not weights"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_a_broken_weight_file_is_named(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"broken{suffix}' is not a readable weight file"):
        backbones.build("test_vit", 3, pretrained=str(path))


def test_a_missing_weight_file_is_named() -> None:
    with pytest.raises(ValueError, match=r"no weight file at 'absent\.pth'"):
        backbones.build("test_vit", 3, pretrained="absent.pth")


def test_a_failed_download_names_the_file_to_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", refuse)
    with pytest.raises(ValueError, match=r"'resnet50\.a1_in1k'.*hf download timm/resnet50.a1_in1k"):
        backbones.build("resnet50.a1_in1k", 3, pretrained=True)


def test_a_backbone_without_published_weights_is_an_error() -> None:
    with pytest.raises(ValueError, match="timm has no weights for 'resnet200'"):
        backbones.build("resnet200", 3, pretrained=True)


def test_grad_checkpointing_gives_the_same_gradients() -> None:
    image, gradients = torch.rand(2, 3, 64, 64), []
    for enabled in (False, True):
        torch.manual_seed(0)
        net = backbones.build("test_convnext", 3, grad_checkpointing=enabled)
        net(image).square().sum().backward()
        gradients.append([p.grad for p in net.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert all(gradient.any() for gradient in gradients[0])


def statistics(net: nn.Module) -> dict[str, torch.Tensor]:
    """Running statistics and counters of batch norms."""
    return {name: value.clone() for name, value in net.named_buffers()}


SMALL_DENSENET = {"growth_rate": 4, "block_config": [2, 2, 2, 2]}
WITH_BATCH_NORM = [
    ("test_efficientnet", {}),
    ("resnet10t", {"drop_rate": 0.3}),
    ("densenet121", SMALL_DENSENET),
    *(
        pytest.param(name, {"drop_rate": 0.28}, marks=pytest.mark.exhaustive)
        for name in ("densenet121", "resnet50", "efficientnet_b2")
    ),
]


@pytest.mark.parametrize(("name", "options"), WITH_BATCH_NORM)
def test_grad_checkpointing_updates_running_statistics_once_per_step(
    name: str, options: dict[str, object]
) -> None:
    states = []
    for enabled in (False, True):
        torch.manual_seed(0)
        net = backbones.build(name, 3, grad_checkpointing=enabled, **options)
        before = statistics(net)
        for _ in range(2):
            net(torch.rand(4, 3, 64, 64)).sum().backward()
        states.append(statistics(net))
        assert all(not torch.equal(before[key], value) for key, value in states[-1].items())
    for key, value in states[0].items():
        assert torch.equal(value, states[1][key]), key
    momenta = {layer.momentum for layer in net.modules() if isinstance(layer, nn.BatchNorm2d)}
    assert 0.0 not in momenta


def test_channels_last_gives_the_same_predict() -> None:
    plain = backbones.build("resnet10t", 3, channels_last=False)
    other = backbones.build("resnet10t", 3)
    other.load_state_dict(plain.state_dict())
    assert other.get_submodule("conv1.0").weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(predict(plain, 64), predict(other, 64), atol=1e-5)


def test_compiling_does_not_change_the_names_of_weights() -> None:
    plain, compiled = (backbones.build("test_resnet", 2, compile=c) for c in (False, True))
    assert list(plain.state_dict()) == list(compiled.state_dict())
    assert compiled._compiled_call_impl is not None


@pytest.mark.exhaustive
def test_sizes_of_a_convolutional_network_and_of_swin_v2() -> None:
    assert 192 in backbones.accepted_sizes("resnet50")
    assert {192, 224, 256} <= set(backbones.accepted_sizes("swinv2_tiny_window8_256"))


def test_weight_file_padding_and_normalization_reach_the_checkpoint(
    tiny: Tiny, tmp_path: Path
) -> None:
    half = [0.5, 0.5, 0.5]
    state = timm.create_model("test_efficientnet", pad_type="same").state_dict()
    state = {name: value + 0.01 for name, value in state.items() if value.is_floating_point()}
    weight_file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(state, weight_file)
    changes = {
        "data.init_args.preprocess": {"size": 32, "mean": half, "std": half},
        "model.init_args.backbone": "test_efficientnet",
        "model.init_args.pretrained": str(weight_file),
        "model.init_args.backbone_args": {"pad_type": "same"},
        "model.init_args.fine_tuning": {"frozen_stages": 4},
        "trainer.max_epochs": 1,
    }
    assert main(["fit", *tiny.configs("path", **changes), "--run", str(tmp_path / "run")]) == 0
    weight_file.unlink()
    module, block = checkpoints.load(tmp_path / "run/best.ckpt")
    assert (list(block.preprocess["mean"]), list(block.preprocess["std"])) == (half, half)
    assert type(module.net.get_submodule("conv_stem")).__name__ == "Conv2dSame"
    assert torch.equal(module.net.state_dict()["conv_stem.weight"], state["conv_stem.weight"])


SOURCES: dict[str, Any] = {
    "checkpoint_path": "weights.pth",
    "cache_dir": "cache",
    "pretrained_cfg": {"file": "weights.pth"},
    "pretrained_cfg_overlay": {"hf_hub_id": "someone/weights"},
    "pretrained_strict": False,
    "act_layer": "hf-hub:someone",
    "block_args": {"name": "https://host/weights"},
}


@pytest.mark.parametrize("name", SOURCES)
def test_backbone_args_that_name_a_file_or_url_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=r"^backbone_args\S*: \w+: .* may not name a file, a URL"):
        ImageClassifier(["a", "b"], "test_resnet", backbone_args={name: SOURCES[name]})


def test_a_checkpoint_that_names_a_file_is_refused_by_inspect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = ImageClassifier(["a", "b"], "test_resnet", image_size=32)
    file = save_checkpoint(module, Preprocess(size=32), tmp_path / "model.ckpt")
    content = torch.load(file, weights_only=True)
    block = content["consilium"]
    block["init_args"]["backbone_args"] = {"checkpoint_path": str(tmp_path / "x")}
    content["consilium"] = checkpoints.block_with_digest(block)
    torch.save(content, file)
    assert main(["inspect", str(file)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "backbone_args: checkpoint_path: " in line
