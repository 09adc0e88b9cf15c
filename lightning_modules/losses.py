"""Training losses by name, and Mixup and CutMix of the batches that they are computed on."""

import inspect
import math
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.transforms import v2

from lightning_modules.freezing import require

LossFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Option = bool | int | float | str | list[float] | None


class FocalLoss(nn.Module):
    """Focal cross entropy with class weights and label smoothing, all of which act together.

    For an image with target t: `alpha * sum_k q_k w_k (1 - p_k)^gamma (-log p_k)`, where q is t
    with `label_smoothing` spread over all classes and w the class weights. The loss of a batch is
    the mean over its images, so that weights act alike at every batch size: torch's cross entropy
    divides by the sum of the batch's weights instead, which cancels them in a batch of one. With
    gamma 0, alpha 1 and equal weights the two are the same. For two classes `pos_weight` replaces
    the class weights by (1, `pos_weight`), as in torch's binary cross entropy.
    """

    def __init__(
        self, gamma: float = 2.0, alpha: float = 1.0, label_smoothing: float = 0.0,
        pos_weight: float | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        require("loss.label_smoothing", label_smoothing, 0 <= label_smoothing < 1, "in [0, 1)")
        values = {"gamma": gamma, "alpha": alpha, "pos_weight": pos_weight or 0.0}
        for name, value in values.items():
            require(f"loss.{name}", value, 0 <= value < math.inf, "in [0, infinity)")
        self.gamma, self.alpha = gamma, alpha
        self.label_smoothing, self.pos_weight = label_smoothing, pos_weight

    def forward(
        self, logits: Tensor, target: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Scalar loss of logits (B, K) and labels (B,) or class probabilities (B, K)."""
        if self.pos_weight is not None:
            class_weights = logits.new_tensor([1.0, self.pos_weight])
        terms, num_classes = self._class_terms(logits), logits.shape[1]
        weights = terms.new_ones(num_classes) if class_weights is None else class_weights.to(terms)
        probabilities = target if target.ndim == 2 else functional.one_hot(target, num_classes)
        smooth = probabilities * (1 - self.label_smoothing) + self.label_smoothing / num_classes
        return self.alpha * (smooth * weights * terms).sum() / len(terms)

    def _class_terms(self, logits: Tensor) -> Tensor:
        """`-(1 - p_k)^gamma log p_k` of each class k, (B, K), in single precision."""
        log_p = functional.log_softmax(logits.float(), dim=1)
        if self.gamma == 0:
            return -log_p
        smallest = torch.finfo(log_p.dtype).tiny  # keeps the slope of the power finite at p = 1
        return -log_p * (-torch.expm1(log_p)).clamp_min(smallest) ** self.gamma


class CrossEntropyLoss(FocalLoss):
    """Cross entropy with class weights and label smoothing: focal loss of gamma 0 and alpha 1."""

    def __init__(self, label_smoothing: float = 0.0, pos_weight: float | None = None) -> None:
        super().__init__(0.0, 1.0, label_smoothing, pos_weight)


#: A loss is an `nn.Module` class, or a function, of (logits, target, class_weights). To add one,
#: enter it here under a name; `loss: {name: NAME, args: {...}}` in a config then selects it. It
#: returns a mean over images: a division by the sum of their weights would depend on the batch.
LOSSES: dict[str, Callable[..., Any]] = {"cross_entropy": CrossEntropyLoss, "focal": FocalLoss}


@dataclass(frozen=True)
class LossConfig:
    """A loss by name and its settings; a setting that is null keeps the default of the loss.

    Args:
        name: cross_entropy, focal, another entry of `lightning_modules.losses.LOSSES`, or the
            import path of a class or function of (logits, target, class_weights).
        gamma: focusing exponent of `focal`.
        alpha: factor of `focal`.
        label_smoothing: fraction of the target that is spread over all classes, in [0, 1).
        pos_weight: for two classes: weight of the second class in place of class weights.
        args: further arguments of a loss of your own.
        mixup_alpha: parameter of the Beta distribution of Mixup's ratio; 0 turns Mixup off.
        cutmix_alpha: parameter of the Beta distribution of CutMix's area; 0 turns CutMix off. If
            both are above 0, each batch gets one of them at random.
    """

    name: str = "cross_entropy"
    gamma: float | None = None
    alpha: float | None = None
    label_smoothing: float | None = None
    pos_weight: float | None = None
    args: dict[str, Option] = field(default_factory=dict)
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0

    def __post_init__(self) -> None:
        require("loss.mixup_alpha", self.mixup_alpha, self.mixup_alpha >= 0, "at least 0")
        require("loss.cutmix_alpha", self.cutmix_alpha, self.cutmix_alpha >= 0, "at least 0")

    def create(self) -> LossFunction:
        """The loss function; ValueError for an unknown name or a setting that it does not have."""
        try:
            factory: Any = LOSSES.get(self.name) or pkgutil.resolve_name(self.name)
        except (ImportError, AttributeError, ValueError) as error:
            problem = f"{self.name!r} is neither one of {', '.join(LOSSES)} nor an import path"
            raise ValueError(f"loss.name: {problem}") from error
        settings = ("gamma", "alpha", "label_smoothing", "pos_weight")
        values = {name: getattr(self, name) for name in settings}
        options = {k: v for k, v in values.items() if v is not None} | self.args
        try:
            inspect.signature(factory).bind_partial(**options)
        except TypeError as error:
            raise ValueError(f"loss: {self.name} refuses {options}: {error}") from None
        return factory(**options) if isinstance(factory, type) else partial(factory, **options)

    def mix(self, image: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) as given, or mixed ones and probabilities (B, K)."""
        alphas = ((v2.MixUp, self.mixup_alpha), (v2.CutMix, self.cutmix_alpha))
        transforms = [mix(alpha=a, num_classes=num_classes) for mix, a in alphas if a]
        if not transforms:
            return image, label
        transform = transforms[int(torch.randint(len(transforms), ()))]
        mixed: tuple[Tensor, Tensor] = transform(image, label)
        return mixed
