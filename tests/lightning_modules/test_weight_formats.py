"""Weights in the layout of other libraries give the network that they were made from."""

import re
from argparse import Namespace

import pytest
import torch
from safetensors.torch import save_file

from lightning_modules import backbones

VIT = ("test_vit", {"init_values": 0.1})  # with layer scale, as DINOv2


def make_net(name, options):
    torch.manual_seed(0)
    net = backbones.build(name, 3, **options).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return net


def hugging_face(state):
    """Names of transformers' Dinov2Model, with its mask token."""
    names = (
        (r"^blocks\.", "encoder.layer."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.ls(\d)\.gamma$", r".layer_scale\1.lambda1"),
        (r"^(cls_token)$", r"embeddings.\1"),
        (r"^pos_embed$", "embeddings.position_embeddings"),
        (r"^patch_embed\.proj\.", "embeddings.patch_embeddings.projection."),
        (r"^norm\.", "layernorm."),
    )
    weights = {"embeddings.mask_token": torch.zeros(1, 64)}
    for name, value in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        if ".attn.qkv." in name:
            for part, piece in zip(("query", "key", "value"), value.chunk(3), strict=True):
                weights[name.replace(".attn.qkv.", f".attention.attention.{part}.")] = piece
        else:
            weights[name] = value
    return weights


def masked_autoencoder(state):
    decoder = {"mask_token": torch.zeros(1), "decoder_embed.weight": torch.zeros(2, 2),
               "decoder_blocks.0.norm1.weight": torch.zeros(2)}  # fmt: skip
    return {"model": {**state, **decoder}, "args": Namespace(lr=1.0), "epoch": 3}


def self_distillation(state):
    teacher = {f"backbone.{name}": value for name, value in state.items()}
    head = {"head.mlp.0.weight": torch.zeros(2, 2), "head.last_layer.weight_g": torch.zeros(2)}
    return {"student": {}, "teacher": {**teacher, **head}, "epoch": 3}


def momentum_contrast(state):
    query = {f"module.encoder_q.{name}": value for name, value in state.items()}
    others = {"module.encoder_k.conv1.0.weight": torch.zeros(2), "module.queue": torch.zeros(2),
              "module.encoder_q.fc.0.weight": torch.zeros(2)}  # fmt: skip
    return {"state_dict": {**query, **others}}


def torchxrayvision(state):
    """One input channel, and the thresholds of its findings."""
    first = "features.conv0.weight"
    gray = {**state, first: state[first].sum(dim=1, keepdim=True)}
    return {f"model.{name}": value for name, value in gray.items()} | {
        "model.op_threshs": torch.zeros(18)
    }


DENSENET = ("densenet121", {"growth_rate": 4, "block_config": [1, 1, 1, 1]})
LAYOUTS = {
    "hugging_face_vit": (VIT, hugging_face),
    "masked_autoencoder": (VIT, masked_autoencoder),
    "self_distillation": (VIT, self_distillation),
    "momentum_contrast": (("test_resnet", {}), momentum_contrast),
    "torchxrayvision": (DENSENET, torchxrayvision),
}


def without_head(net):
    heads = tuple(f"{name}." for name in backbones.head_names(net))
    return {k: v for k, v in net.state_dict().items() if not k.startswith(heads)}


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    """Network, its name and options, and a file in the layout of a library."""
    (name, options), convert = LAYOUTS[request.param]
    net = make_net(name, options)
    content, file = convert(without_head(net)), tmp_path / "weights.pth"
    torch.save(content, file)
    return net, name, options, content, file


def tensors_of(content):
    return next((v for v in content.values() if isinstance(v, dict) and v), content)


def test_the_network_of_a_foreign_file_computes_the_same_features(layout):
    net, name, options, _, file = layout
    loaded = backbones.build(name, 3, pretrained=str(file), **options).eval()
    gray = torch.randn(2, 1, *[160] * 2).expand(-1, 3, -1, -1)
    with torch.no_grad():
        difference = net.forward_features(gray) - loaded.forward_features(gray)
    assert difference.abs().max() < 1e-4
    assert set(without_head(loaded)) == set(without_head(net))


def test_a_tensor_too_many_is_named(layout):
    _, name, options, content, file = layout
    prefix = next(iter(tensors_of(content))).split(".")[0]
    tensors_of(content)[f"{prefix}.something.else"] = torch.zeros(1)
    torch.save(content, file)
    with pytest.raises(ValueError, match=r"unknown to the network: .*something\.else"):
        backbones.build(name, 3, pretrained=str(file), **options)


def test_a_missing_tensor_is_named(layout):
    _, name, options, content, file = layout
    tensors = tensors_of(content)
    del tensors[next(k for k in tensors if "norm1" in k or ("1.0.weight" in k and "_k" not in k))]
    torch.save(content, file)
    with pytest.raises(ValueError, match="lacks"):
        backbones.build(name, 3, pretrained=str(file), **options)


def test_a_file_that_runs_code_is_refused(tmp_path):
    class Attack:
        def __reduce__(self):
            return print, ("run",)

    torch.save({"state_dict": {"conv1.weight": Attack()}}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not a readable weight file"):
        backbones.build("test_resnet", 3, pretrained=str(tmp_path / "weights.pth"))


@pytest.mark.parametrize("name", ["densenet121", "regnety_002"])
def test_families_whose_converter_of_timm_takes_only_the_weights_can_be_read(name, tmp_path):
    net = backbones.build(name, 3, channels_last=False)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    loaded = backbones.build(name, 3, pretrained=str(tmp_path / "weights.safetensors"))
    assert all(torch.equal(value, net.state_dict()[k]) for k, value in loaded.state_dict().items())
