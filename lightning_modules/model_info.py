"""What is known of a backbone before it is trained: size, cost, license, CAM layer."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules import backbones, checkpoints

KNOWN = (  # those that the shipped configs train, with the tags of their weights
    "convnextv2_base.fcmae_ft_in22k_in1k",
    "tf_efficientnetv2_s.in21k_ft_in1k",
    "maxvit_tiny_tf_224.in1k",
    "swin_tiny_patch4_window7_224.ms_in22k_ft_in1k",
    "swinv2_tiny_window8_256.ms_in1k",
    "coatnet_0_rw_224.sw_in1k",
    "convnext_tiny.in12k_ft_in1k",
    "densenet121.ra_in1k",
    "densenet169.tv_in1k",
    "efficientnet_b0.ra_in1k",
    "efficientnet_b1.ft_in1k",
    "efficientnet_b2.ra_in1k",
    "efficientnet_b3.ra2_in1k",
    "mobilenetv2_100.ra_in1k",
    "mobilenetv3_small_100.lamb_in1k",
    "regnety_002.pycls_in1k",
    "resnet10t.c3_in1k",
    "resnet50.a1_in1k",
    "seresnext50_32x4d.racm_in1k",
    "residual_attention",
)
SMALLEST_MAP = 7  # a heat map coarser than 7 x 7 says little about places


@dataclass(frozen=True)
class CamLayer:
    """Where a network's heat map is taken: a module's name, and how its output is laid out.

    ``NCHW`` and ``NHWC`` are maps; ``NLC`` are tokens, the first ``prefix`` of them without a
    place. ``height`` and ``width`` are those of the map.
    """

    name: str
    layout: Literal["NCHW", "NHWC", "NLC"]
    height: int
    width: int
    prefix: int = 0

    def maps(self, output: Tensor) -> Tensor:
        """The layer's output as maps, (B, C, H, W)."""
        if self.layout == "NCHW":
            return output
        if self.layout == "NHWC":
            return output.permute(0, 3, 1, 2)
        placed = output[:, self.prefix :].transpose(1, 2)
        return placed.reshape(len(output), -1, self.height, self.width)


@dataclass(frozen=True)
class Facts:
    """One row of `consilium backbones`; ``macs`` are of convolutions and matrix products."""

    name: str
    parameters: int
    macs: int
    image_size: int
    license: str
    cam: CamLayer | None

    @property
    def commercial(self) -> bool:
        """Whether the published weights may be used commercially."""
        return backbones.is_commercial(self.license)


def facts(name: str, image_size: int | None = None) -> Facts:
    """The facts of a name with a two-class head; no weight is made or fetched."""
    size = image_size or backbones.input_size(name)
    with torch.device("meta"):
        net = backbones.build(name, 2, image_size=image_size)
    parameters = sum(parameter.numel() for parameter in net.parameters())
    license, cam = backbones.license(name), cam_layer(net, (3, size, size))
    return Facts(name, parameters, macs(net, size), size, license, cam)


def cost(block: checkpoints.Block) -> tuple[int, int]:
    """Parameters and MACs of the network that a checkpoint's block describes; no weight is made."""
    with torch.device("meta"):
        net: Any = checkpoints.build(block).net
    parameters = sum(parameter.numel() for parameter in net.parameters())
    return parameters, macs(net, int(block.preprocess["size"]))


def macs(net: nn.Module, size: int) -> int:
    """Multiply-accumulates of one square image, on the device of the network."""
    image = torch.zeros(1, 3, size, size, device=next(net.parameters()).device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(image)
    return int(counter.get_total_flops()) // 2


def cam_layer(net: nn.Module, image_shape: tuple[int, int, int]) -> CamLayer | None:
    """The deepest stage whose map is at least 7 x 7 for images (C, H, W), else the largest map.

    None for a network without maps. ``net`` is left as it is: nothing is computed.
    """
    maps = [_layer(net, name, shape) for name, shape in _stage_shapes(net, image_shape)]
    found = [layer for layer in maps if layer is not None]
    fine = [layer for layer in found if min(layer.height, layer.width) >= SMALLEST_MAP]
    largest = max(found, key=lambda layer: layer.height, default=None)
    return fine[-1] if fine else largest


def _stage_shapes(
    net: nn.Module, image_shape: tuple[int, int, int]
) -> list[tuple[str, tuple[int, ...]]]:
    """Name and output shape of each stage, in the order in which they run."""
    found: dict[str, tuple[int, ...]] = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: found.update({name: tuple(output.shape)})
        )
        for name in _stage_names(net)
    ]
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    try:
        with _evaluating(net), torch.no_grad():
            image = torch.zeros(1, *image_shape, device="meta")
            functional_call(net, {k: v.to("meta") for k, v in state.items()}, (image,))
    finally:
        for hook in hooks:
            hook.remove()
    return list(found.items())


def _stage_names(net: nn.Module) -> list[str]:
    info = getattr(net, "feature_info", None) or []
    stages = info if isinstance(info, list) else info.info
    return [str(stage["module"]) for stage in stages]


def _layer(net: nn.Module, name: str, shape: tuple[int, ...]) -> CamLayer | None:
    if len(shape) == 4 and getattr(net, "output_fmt", "NCHW") == "NHWC":
        return CamLayer(_before_windows(net, name), "NHWC", shape[1], shape[2])
    if len(shape) == 4:
        return CamLayer(name, "NCHW", shape[2], shape[3])
    prefix = int(getattr(net, "num_prefix_tokens", 0))
    side = math.isqrt(shape[1] - prefix) if len(shape) == 3 else 0
    if len(shape) != 3 or side * side != shape[1] - prefix:
        return None
    return CamLayer(_before_attention(net, name), "NLC", side, side, prefix)


def _before_attention(net: nn.Module, name: str) -> str:
    """What a class token gathers from: after the last block no other token reaches the head."""
    gathers = getattr(net, "global_pool", "") == "token" and hasattr(
        net.get_submodule(name), "norm1"
    )
    return f"{name}.norm1" if gathers else name


def _before_windows(net: nn.Module, name: str) -> str:
    """What the last block of a Swin's stage reads: behind it places hold what others have told.

    On a trained Swin the peaks lie on the lesion more often there (benchmarks/README.md).
    """
    blocks = list(getattr(net.get_submodule(name), "blocks", []))
    windows = blocks and isinstance(blocks[-1], SwinTransformerBlock)
    return f"{name}.blocks.{len(blocks) - 1}.norm1" if windows else name


@contextmanager
def _evaluating(net: nn.Module) -> Iterator[None]:
    before = {name: module.training for name, module in net.named_modules()}
    net.eval()
    yield
    for name, module in net.named_modules():
        module.training = before[name]
