"""Weight files of other libraries: their nesting, and the names of timm for their tensors."""

import re
from argparse import Namespace
from typing import NamedTuple

import torch
from timm.models import clean_state_dict
from torch import Tensor

# keys under which training programs store weights, the preferred ones first
CONTAINERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher", "student")
ATTENTION = ("q", "k", "v")  # one tensor in timm


class WeightFormat(NamedTuple):
    """Regular expressions for tensor names in the files of one library or pretraining method."""

    marker: str  # of a tensor that only this source has
    dropped: str  # of tensors that are not of the network, such as a decoder; all others must be
    renames: tuple[tuple[str, str], ...] = ()  # applied in order


#: To add a source, enter it here. Vision transformers of Hugging Face include RAD-DINO; masked
#: autoencoders include RETFound. TorchXRayVision needs `mean: 0.5` and `std: 0.000488` (1 / 2048).
WEIGHT_FORMATS = {
    "hugging_face_vit": WeightFormat(
        r"embeddings\.patch_embeddings\.projection\.weight$",
        r"mask_token$|(^|\.)pooler\.",
        (
            (r"^(vit|dinov2|backbone|model)\.", ""),
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^embeddings\.register_tokens$", "reg_token"),
            (r"^embeddings\.", ""),
            (r"^encoder\.layer\.", "blocks."),
            (r"\.attention\.attention\.(q|k|v)(uery|ey|alue)\.", r".attn.\1."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
            (r"^layernorm\.", "norm."),
            (r"^classifier\.", "head."),
        ),
    ),
    "masked_autoencoder": WeightFormat(r"^decoder_embed\.", r"^(decoder_|mask_token$)"),
    "self_distillation": WeightFormat(  # DINO, iBOT
        r"^backbone\.", r"^(head|projector|predictor)\.", ((r"^backbone\.", ""),)
    ),
    "momentum_contrast": WeightFormat(
        r"^(encoder_q|base_encoder)\.",
        r"^(encoder_k|momentum_encoder|predictor)\.|^queue|^(encoder_q|base_encoder)\.(fc|head)\.",
        ((r"^(encoder_q|base_encoder)\.", ""),),
    ),
    "torchxrayvision": WeightFormat(
        r"^(model\.)?op_threshs$", r"op_threshs$", ((r"^model\.", ""),)
    ),
}


def read_pickled(path: str) -> dict[str, Tensor]:
    """The tensors of a .pth, .pt or .bin file by name; no code in it is run."""
    with torch.serialization.safe_globals([Namespace]):  # the arguments of a training program
        content = torch.load(path, map_location="cpu", weights_only=True)
    for key in CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    if not isinstance(content, dict):
        raise ValueError(f"contains {type(content).__name__}, not named tensors")
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    return dict(clean_state_dict(tensors))


def to_timm_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with timm's names, without the dropped ones, if their format is known; else as is."""
    for source in WEIGHT_FORMATS.values():
        if any(re.search(source.marker, name) for name in weights):
            remaining = {n: w for n, w in weights.items() if not re.search(source.dropped, n)}
            return _join_attention({_rename(n, source): w for n, w in remaining.items()})
    return weights


def _rename(name: str, source: WeightFormat) -> str:
    """The name in timm of a tensor with this name in a file of `source`."""
    for pattern, replacement in source.renames:
        name = re.sub(pattern, replacement, name)
    return name


def _join_attention(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights with query, key and value of each attention layer joined to one tensor `qkv`."""
    joined = {}
    for name, value in weights.items():
        match = re.fullmatch(r"(.*\.attn\.)([qkv])(\.\w+)", name)
        parts = [f"{match[1]}{part}{match[3]}" for part in ATTENTION] if match else []
        if match and weights.keys() >= set(parts):
            joined[f"{match[1]}qkv{match[3]}"] = torch.cat([weights[part] for part in parts])
        else:
            joined[name] = value
    return joined
