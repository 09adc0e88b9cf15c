"""Size, compute, license and CAM layer of a backbone, without creating its weights."""

import math
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import timm
import torch
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from lightning_modules import backbones, checkpoints
from lightning_modules.freezing import eval_mode

SHIPPED_BACKBONES = (  # trained by the shipped configs, with the tags of their weights
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
MIN_MAP_SIZE = 7  # a saliency map coarser than 7 x 7 localizes poorly


@dataclass(frozen=True)
class CamLayer:
    """The layer of a network that saliency maps are computed from, and the layout of its output.

    In `NLC` (tokens), the first `prefix` tokens (class token, registers) have no position.
    """

    name: str
    layout: Literal["NCHW", "NHWC", "NLC"]
    height: int
    width: int
    prefix: int = 0

    def feature_maps(self, output: Tensor) -> Tensor:
        """The layer's output as feature maps, (B, C, H, W)."""
        if self.layout == "NCHW":
            return output
        if self.layout == "NHWC":
            return output.permute(0, 3, 1, 2)
        tokens = output[:, self.prefix :].transpose(1, 2)
        return tokens.reshape(len(output), -1, self.height, self.width)


@dataclass(frozen=True)
class BackboneInfo:
    """One row of `consilium backbones`; `macs` as in `count_macs`, with a head for two classes."""

    name: str
    parameters: int
    macs: int
    image_size: int
    license: str
    is_commercial: bool
    cam: CamLayer | None


@dataclass(frozen=True)
class WeightUse:
    """One use of a weight in a forward pass, at `positions` output positions of an image."""

    name: str
    weight: Tensor
    layer: nn.Module
    positions: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return self.positions * self.weight.numel()


def find_backbones(pattern: str | None = None, commercial_only: bool = False) -> list[str]:
    """Names that match a pattern with * and ?; without one, the backbones of the shipped configs.

    A pattern with a dot matches pretrained weights (`architecture.tag`), others architectures.
    """
    names = list(SHIPPED_BACKBONES)
    if pattern is not None:
        list_names = timm.list_pretrained if "." in pattern else timm.list_models
        names = list_names(pattern if "*" in pattern or "?" in pattern else f"*{pattern}*")
    if commercial_only:
        names = [name for name in names if backbones.license(name) in backbones.COMMERCIAL_LICENSES]
    if not names:
        nearest = ", ".join(backbones.nearest_names(pattern or "")) or "none"
        raise ValueError(f"no backbone matches {pattern!r}; the nearest are: {nearest}")
    return names


def backbone_info(name: str, image_size: int | None = None) -> BackboneInfo:
    """Describes a timm name with a head for two classes; no weight is created or downloaded."""
    size = image_size or backbones.input_size(name)
    with torch.device("meta"):
        net = backbones.build(name, 2, image_size=image_size)
    cam, license = cam_layer(net, (3, size, size)), backbones.license(name)
    is_commercial = license in backbones.COMMERCIAL_LICENSES
    cost = (count_parameters(net), count_macs(net, size))
    return BackboneInfo(name, *cost, size, license, is_commercial, cam)


def checkpoint_cost(block: checkpoints.Block) -> tuple[int, int]:
    """Parameters and MACs of the network that a checkpoint's block describes."""
    with torch.device("meta"):
        net: Any = checkpoints.build_module(block).net
    return count_parameters(net), count_macs(net, int(block.preprocess["size"]))


def count_parameters(net: nn.Module) -> int:
    """Number of values in the parameters of a network."""
    return sum(parameter.numel() for parameter in net.parameters())


def zero_fraction(net: nn.Module) -> float:
    """Fraction of all values in the parameters of a network that are 0."""
    nonzero = sum(int(parameter.detach().count_nonzero()) for parameter in net.parameters())
    return 1 - nonzero / count_parameters(net)


def count_macs(net: nn.Module, size: int) -> int:
    """Multiply-accumulates of convolutions and matrix products, attention included, per image."""
    image = torch.zeros(1, 3, size, size, device=next(net.parameters()).device)
    with FlopCounterMode(display=False) as counter, eval_mode(net), torch.no_grad():
        net(image)
    return int(counter.get_total_flops()) // 2


def layer_macs(net: nn.Module, image: Tensor) -> list[WeightUse]:
    """Uses of weights of convolution, linear and attention layers for an image (1, C, H, W).

    In forward order. Products of two activations (attention scores) belong to no weight and are
    counted by `count_macs` only. No statistics change and no random number is drawn.
    """
    uses: list[WeightUse] = []

    def record_weight_uses(
        name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor
    ) -> None:
        """Forward hook: adds the uses of the layer's weights to `uses`."""
        weights, positions = ["weight"], inputs[0].numel() // inputs[0].shape[-1]
        if isinstance(layer, nn.Conv2d):
            positions = output.shape[-2] * output.shape[-1]
        elif isinstance(layer, nn.MultiheadAttention):
            has_weight = layer.in_proj_weight is not None
            weights = ["in_proj_weight", "out_proj.weight"] if has_weight else []
        for key in weights:
            uses.append(WeightUse(f"{name}.{key}", layer.get_parameter(key), layer, positions))

    kinds = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    with ExitStack() as hooks, eval_mode(net), torch.no_grad(), torch.random.fork_rng(devices=[]):
        for name, layer in net.named_modules():
            if isinstance(layer, kinds):
                hook = partial(record_weight_uses, name)
                hooks.enter_context(layer.register_forward_hook(hook))
        net(image)
    return uses


def cam_layer(net: nn.Module, image_shape: tuple[int, int, int]) -> CamLayer | None:
    """The deepest stage with a map of at least 7 x 7 for images (C, H, W), else the largest map.

    None without feature maps. The forward pass is on the meta device: nothing is computed.
    """
    shapes = _stage_shapes(net, image_shape).items()
    layers = [layer for name, shape in shapes if (layer := _as_cam_layer(net, name, shape))]
    fine = [layer for layer in layers if min(layer.height, layer.width) >= MIN_MAP_SIZE]
    largest = max(layers, key=lambda layer: layer.height, default=None)
    return fine[-1] if fine else largest


def _stage_shapes(net: nn.Module, image_shape: tuple[int, int, int]) -> dict[str, tuple[int, ...]]:
    """Output shape of each stage by its name, in forward order."""
    shapes: dict[str, tuple[int, ...]] = {}
    info = getattr(net, "feature_info", None) or []
    stages = [str(stage["module"]) for stage in (info if isinstance(info, list) else info.info)]
    state = {**dict(net.named_parameters()), **dict(net.named_buffers())}

    def record_shape(name: str, stage: nn.Module, inputs: object, output: Tensor) -> None:
        shapes[name] = tuple(output.shape)

    with ExitStack() as hooks, eval_mode(net), torch.no_grad():
        for name in stages:
            stage = net.get_submodule(name)
            hooks.enter_context(stage.register_forward_hook(partial(record_shape, name)))
        image = torch.zeros(1, *image_shape, device="meta")
        functional_call(net, {k: v.to("meta") for k, v in state.items()}, (image,))
    return shapes


def _as_cam_layer(net: nn.Module, name: str, shape: tuple[int, ...]) -> CamLayer | None:
    """The CAM layer in a stage whose output has this shape; None if it has no positions."""
    block = net.get_submodule(name)
    if len(shape) == 4 and getattr(net, "output_fmt", "NCHW") == "NHWC":
        # The output of the last block of a Swin stage mixes positions of a window; on a trained
        # Swin the maximum is on the lesion more often at its input (benchmarks/README.md).
        blocks = list(getattr(block, "blocks", []))
        is_swin = blocks and isinstance(blocks[-1], SwinTransformerBlock)
        name = f"{name}.blocks.{len(blocks) - 1}.norm1" if is_swin else name
        return CamLayer(name, "NHWC", shape[1], shape[2])
    if len(shape) == 4:
        return CamLayer(name, "NCHW", shape[2], shape[3])
    prefix = int(getattr(net, "num_prefix_tokens", 0))
    side = math.isqrt(shape[1] - prefix) if len(shape) == 3 else 0
    if len(shape) != 3 or side * side != shape[1] - prefix:
        return None
    # With class-token pooling only that token of the last block's output reaches the head.
    pools_token = getattr(net, "global_pool", "") == "token"
    has_norm = pools_token and "norm1" in dict(block.named_children())
    return CamLayer(f"{name}.norm1" if has_norm else name, "NLC", side, side, prefix)
