"""One-versus-one: a binary head for each pair of classes, coupled into class probabilities."""

import inspect
import re
from collections.abc import Callable
from typing import Any, Literal

import torch
from timm.models import group_parameters
from torch import Tensor, nn

from lightning_modules import backbones, checkpoints
from lightning_modules.classifier import ImageClassifier


class OneVsOneClassifier(ImageClassifier):
    """K(K-1)/2 binary pair heads, each trained on images of its two classes only.

    The logits, (B, K), are the logarithms of the coupled class probabilities
    (`lightning_modules.heads`); prediction tables have the pair logits as well. Dropout before the
    heads is the backbone's `drop_rate`. The other arguments are those of `ImageClassifier`.

    Args:
        class_names: the classes in the order of the logits; taken from the data.
        backbone: a timm name; `consilium backbones PATTERN` lists them.
        trunks: `shared` uses one backbone for all pairs, `pair` one for each.
    """

    def __init__(
        self, class_names: list[str], backbone: str = "resnet50",
        trunks: Literal["shared", "pair"] = "shared", **kwargs: Any,
    ) -> None:  # fmt: skip
        self.trunks = trunks
        super().__init__(class_names, backbone, head="one_vs_one", **kwargs)
        if type(self).__init__ is OneVsOneClassifier.__init__:  # a checkpoint records defaults too
            call = inspect.signature(ImageClassifier).bind(class_names, backbone, **kwargs)
            call.apply_defaults()
            del call.arguments["head"]
            groups = {name: getattr(self, name) for name in checkpoints.TRAINING_ARGUMENTS}
            arguments = {**call.arguments, **groups, "trunks": trunks}
            self.init_args = checkpoints.plain_values(arguments)

    def build_net(self, backbone: str, options: dict[str, Any]) -> nn.Module:
        """A network with one output per pair, (B, P)."""
        if self.trunks == "shared":
            return super().build_net(backbone, options)
        trunks = [backbones.build(backbone, 1, **options) for _ in range(self.head.num_outputs)]
        return ParallelTrunks(trunks)


class ParallelTrunks(nn.Module):
    """Networks with one output each, on the same images; the outputs are concatenated."""

    def __init__(self, trunks: list[nn.Module]) -> None:
        super().__init__()
        self.trunks = nn.ModuleList(trunks)
        heads = backbones.head_names(trunks[0])
        names = [f"trunks.{i}.{head}" for i in range(len(trunks)) for head in heads]
        self.pretrained_cfg = {"classifier": names}

    def forward(self, image: Tensor) -> Tensor:
        """Outputs (B, P) of images (B, C, H, W)."""
        return torch.cat([trunk(image) for trunk in self.trunks], dim=1)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], tuple[int]]:
        """A function from a parameter's name to its layer group, which is that in its trunk."""
        trunk: Any = self.trunks[0]
        groups = group_parameters(trunk, trunk.group_matcher(coarse=coarse), reverse=True)
        return lambda name: (groups[re.sub(r"^trunks\.\d+\.", "", name)],)
