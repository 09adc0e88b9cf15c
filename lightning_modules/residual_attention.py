"""A residual CNN with a spatial attention map, registered in timm as `residual_attention`."""

from functools import partial

import timm
import torch
from timm.models.resnet import BasicBlock, downsample_conv
from torch import Tensor, nn

CONFIG = {
    "input_size": (3, 224, 224),
    "num_classes": 1000,
    "first_conv": "stem.0",
    "classifier": "head",
    "license": "mit",
    "mean": timm.data.IMAGENET_DEFAULT_MEAN,
    "std": timm.data.IMAGENET_DEFAULT_STD,
}
default_cfgs = timm.models.generate_default_cfgs({"residual_attention.untrained": CONFIG})


class SpatialAttention(nn.Module):
    """Multiplies each position by a weight in (0, 1) from its mean and maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape (B, C, H, W)."""
        pooled = torch.cat([x.mean(1, keepdim=True), x.amax(1, keepdim=True)], dim=1)
        return x * torch.sigmoid(self.conv(pooled))


class ResidualAttention(nn.Module):
    """Residual stages, spatial attention, pooling and a head, for images of at least 8 pixels."""

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.1,
        widths: tuple[int, ...] = (64, 128, 256), depths: tuple[int, ...] = (2, 2, 2),
    ) -> None:  # fmt: skip
        super().__init__()
        self.num_classes, self.drop_rate, self.num_features = num_classes, drop_rate, widths[-1]
        self.grad_checkpointing = False
        conv = nn.Conv2d(in_chans, widths[0], 3, 2, 1, bias=False)
        self.stem = nn.Sequential(conv, nn.BatchNorm2d(widths[0]), nn.ReLU())
        strides = (1, *[2] * (len(widths) - 1))
        sizes = zip((widths[0], *widths), widths, depths, strides, strict=False)
        self.stages = nn.Sequential(*(_stage(*size, drop_rate) for size in sizes))
        self.attention = SpatialAttention()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head: nn.Module = nn.Linear(widths[-1], num_classes)
        self.feature_info = [
            {"module": f"stages.{i}", "num_chs": width, "reduction": 2 ** (i + 1)}
            for i, width in enumerate(widths)
        ]

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, K) of images (B, C, H, W)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last stage's features, weighted by the attention map, (B, C, H / 8, W / 8)."""
        x = self.stem(x)
        is_checkpointed = self.grad_checkpointing and self.training
        x = timm.models.checkpoint_seq(self.stages, x) if is_checkpointed else self.stages(x)
        weighted: Tensor = self.attention(x)
        return weighted

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits (B, K) of features, or with `pre_logits` the pooled features, (B, C)."""
        pooled: Tensor = self.pool(x).flatten(1)
        return pooled if pre_logits else self.head(pooled)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Regular expressions of the stem and the stages (or blocks); the head matches none."""
        return {"stem": r"^stem", "blocks": r"^stages\.(\d+)" + ("" if coarse else r"\.(\d+)")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recomputes the stages in the backward pass instead of storing their activations."""
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        """The head."""
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replaces the head; with 0 classes the network returns the pooled features."""
        self.num_classes = num_classes
        self.head = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()


def _stage(in_chans: int, width: int, depth: int, stride: int, drop_rate: float) -> nn.Sequential:
    """Residual blocks with dropout, of which the first has the stride."""
    drop = partial(nn.Dropout2d, drop_rate)
    skip = downsample_conv(in_chans, width, 1, stride) if stride > 1 else None
    blocks = (BasicBlock(width, width, drop_block=drop) for _ in range(depth - 1))
    return nn.Sequential(BasicBlock(in_chans, width, stride, skip, drop_block=drop), *blocks)


def residual_attention(pretrained: bool = False, **kwargs: object) -> ResidualAttention:
    """Creates the network: three stages of 64, 128 and 256 channels with two blocks each."""
    build = timm.models.build_model_with_cfg
    net: ResidualAttention = build(ResidualAttention, "residual_attention", pretrained, **kwargs)
    return net


timm.models.register_model(residual_attention)
