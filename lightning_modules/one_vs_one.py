"""One-versus-one: a binary head for each pair of classes, coupled into class probabilities."""

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from evaluation.predictions import PredictionTable
from lightning_modules import backbones, checkpoints, pretrained
from lightning_modules.base import Batch
from lightning_modules.classifier import ImageClassifier, Plain, single_view
from lightning_modules.freezing import FineTuning
from lightning_modules.losses import LossConfig
from lightning_modules.optim import LRSchedulerConfig, OptimizerConfig


class OneVsOneClassifier(ImageClassifier):
    """K(K-1)/2 pair heads on one trunk; each learns from images of its two classes only.

    The logits, (B, K), are the logarithms of the coupled class probabilities
    (`lightning_modules.heads`); prediction tables have the pair logits as well. Dropout before the
    heads is the backbone's `drop_rate`.

    Args:
        class_names: the classes, at least two; taken from the data.
        backbone: a timm name; `consilium backbones PATTERN` lists them.
        pretrained: true downloads timm's weights, false starts from random ones, a path reads a
            weight file.
        image_size: side of the input in pixels; taken from the data.
        backbone_args: further arguments of the timm model, for instance {drop_rate: 0.3}.
        loss: loss of each pair, with the class weights of its two classes.
        optimizer: optimizer, learning rate and weight decay.
        lr_scheduler: course of the learning rate.
        fine_tuning: frozen layers, and how the learning rate decreases with depth.
        trunks: `shared` uses one backbone for all pairs, `pair` one for each.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet50",
        pretrained: bool | str = False,
        image_size: int | None = None,
        backbone_args: dict[str, Plain] | None = None,
        loss: LossConfig = LossConfig(),
        optimizer: OptimizerConfig = OptimizerConfig(),
        lr_scheduler: LRSchedulerConfig = LRSchedulerConfig(),
        fine_tuning: FineTuning = FineTuning(),
        trunks: Literal["shared", "pair"] = "shared",
    ) -> None:
        init_args = checkpoints.plain_values(locals())
        self.trunks = trunks
        super().__init__(
            class_names, backbone, pretrained, image_size, backbone_args, "one_vs_one", loss,
            optimizer, lr_scheduler, fine_tuning,
        )  # fmt: skip
        self.init_args = init_args

    def build_net(self, backbone: str, options: dict[str, Any]) -> nn.Module:
        """A network with one output per pair, (B, P)."""
        if self.trunks == "shared":
            return super().build_net(backbone, options)
        trunks = [backbones.build(backbone, 1, **options) for _ in range(self.head.num_outputs)]
        return ParallelTrunks(trunks)

    def member_logits(self, batch: Batch) -> Tensor:
        """Pair logits, as those of one member, (B, 1, P)."""
        pair_logits: Tensor = self.net(single_view(batch))
        return pair_logits.unsqueeze(1)

    def make_table(
        self, rows: pd.DataFrame, logits: np.ndarray, meta: dict[str, Any]
    ) -> PredictionTable:
        """The table of coupled logits (n, K), given pair logits (n, P), which it has as well."""
        coupled = self.head.logits(torch.from_numpy(logits)).numpy()
        return PredictionTable(rows, coupled, self.class_names, meta, pair_logits=logits)


class ParallelTrunks(nn.Module):
    """Networks with one output each, on the same images; the outputs are concatenated."""

    def __init__(self, trunks: list[nn.Module]) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)
        heads = pretrained.head_names(trunks[0])
        names = [f"trunks.{i}.{head}" for i in range(len(trunks)) for head in heads]
        self.pretrained_cfg = {"classifier": names}

    def forward(self, image: Tensor) -> Tensor:
        """Outputs (B, P) of images (B, C, H, W)."""
        return torch.cat([trunk(image) for trunk in self.trunks], dim=1)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int]]:
        """Layer group of a parameter: that of the same parameter in its trunk."""
        trunk: Any = self.trunks[0]
        groups = group_parameters(trunk, trunk.group_matcher(coarse=coarse), reverse=True)
        return lambda name: (groups[re.sub(r"^trunks\.\d+\.", "", name)],)
