"""One-versus-one: a binary head for each pair of classes, coupled into class probabilities."""

import re
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from timm.models import group_parameters
from torch import Tensor, nn

from evaluation import one_vs_one
from evaluation.predictions import PredictionTable
from lightning_modules import backbones, checkpoints
from lightning_modules import pretrained as weights
from lightning_modules.batch import Batch
from lightning_modules.classifier import ImageClassifier, Plain, one_view
from lightning_modules.freezing import FineTuning
from lightning_modules.losses import Loss
from lightning_modules.optim import Optimization

SMALLEST = 1e-30  # of a coupled probability, whose logarithm is the logit


@checkpoints.register
class OneVsOneClassifier(ImageClassifier):
    """K(K-1)/2 pair heads on one trunk; each learns from the images of its two classes alone.

    The logits, (B, K), are the logarithms of the coupled class probabilities
    (`evaluation.coupling`); prediction tables keep the pair logits beside them. Dropout before
    the heads is the backbone's `drop_rate`.

    Args:
        class_names: the classes, at least two; linked from the data.
        backbone: a timm name.
        pretrained: true, false or the path of a weight file.
        image_size: side of the input in pixels; linked from the data.
        backbone_args: further arguments of the timm model, drop_rate for instance.
        loss: the loss of each pair, with the class weights of its two classes.
        optimization: optimizer and schedule.
        tuning: what is frozen, and how the learning rate falls with depth.
        trunks: one shared trunk, or one for each pair.
    """

    def __init__(
        self,
        class_names: list[str],
        backbone: str = "resnet50",
        pretrained: bool | str = False,
        image_size: int | None = None,
        backbone_args: dict[str, Plain] | None = None,
        loss: Loss = Loss(),
        optimization: Optimization = Optimization(),
        tuning: FineTuning = FineTuning(),
        trunks: Literal["shared", "pair"] = "shared",
    ) -> None:
        init_args = checkpoints.plain(locals())
        self.pairs, self.trunks = one_vs_one.pairs(len(class_names)), trunks
        super().__init__(
            class_names, backbone, pretrained, image_size, backbone_args, loss, optimization, tuning
        )
        self.init_args = init_args

    def build_net(self, backbone: str, options: dict[str, Any]) -> nn.Module:
        """A network with one output a pair."""
        if self.trunks == "shared":
            return backbones.build(backbone, len(self.pairs), **options)
        return Trunks([backbones.build(backbone, 1, **options) for _ in self.pairs])

    def logits(self, outputs: Tensor) -> Tensor:
        """Logarithms of the coupled class probabilities, (B, K), of pair logits (B, P)."""
        return log_coupled(outputs, len(self.class_names))

    def cost(self, outputs: Tensor, target: Tensor, weights: Tensor | None) -> Tensor:
        """Mean of the pairs' losses over all (image, pair) whose image is of the pair.

        An image of neither class moves nothing in a pair's head.
        """
        found = [
            self.loss.rows(*rows, None if weights is None else weights[[i, j]])
            for rows, (i, j) in (
                (_rows_of(outputs, target, at, pair), pair) for at, pair in enumerate(self.pairs)
            )
        ]
        losses, sizes = (torch.cat(part) for part in zip(*found, strict=True))
        return losses.sum() / sizes.sum()

    def votes(self, batch: Batch) -> Tensor:
        """Pair logits as those of one member, (B, 1, P)."""
        pair_logits: Tensor = self.net(one_view(batch))
        return pair_logits.unsqueeze(1)

    def tabulate(
        self, rows: pd.DataFrame, votes: np.ndarray, meta: dict[str, Any]
    ) -> PredictionTable:
        """The table of coupled logits, the pair logits beside them."""
        logits = log_coupled(torch.from_numpy(votes), len(self.class_names)).numpy()
        return PredictionTable(rows, logits, self.class_names, meta, pairs=votes)


class Trunks(nn.Module):
    """Networks side by side with one output each; their outputs stand beside each other."""

    def __init__(self, trunks: list[nn.Module]) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)
        heads = weights.head_names(trunks[0])
        names = [f"trunks.{at}.{head}" for at in range(len(trunks)) for head in heads]
        self.pretrained_cfg = {"classifier": names}

    def forward(self, image: Tensor) -> Tensor:
        """Outputs (B, P) of images (B, C, H, W)."""
        return torch.cat([trunk(image) for trunk in self.trunks], dim=1)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int]]:
        """Layer group of a parameter: that of its trunk's parameter of the same name."""
        first: Any = self.trunks[0]
        groups = group_parameters(first, first.group_matcher(coarse=coarse), reverse=True)
        return lambda name: (groups[re.sub(r"^trunks\.\d+\.", "", name)],)


def _rows_of(
    outputs: Tensor, label: Tensor, at: int, pair: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Two-class logits and labels of the images that belong to a pair."""
    rows = (label == pair[0]) | (label == pair[1])
    z = outputs[rows, at]
    return torch.stack([z, torch.zeros_like(z)], dim=1), (label[rows] == pair[1]).long()


def log_coupled(pair_logits: Tensor, classes: int) -> Tensor:
    """Logarithms of the coupled class probabilities, (n, K), of pair logits (n, K(K-1)/2)."""
    coupled = one_vs_one.couple(pair_logits, classes).clamp_min(SMALLEST)
    return coupled.log().float()
