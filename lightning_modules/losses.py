"""One loss for all members: cross entropy with focus, class weights and smoothing together."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Loss:
    """Weighted, smoothed, focal cross entropy: every part acts whatever the others are.

    Of an image with target t: ``alpha * sum_k q_k w_k (1 - p_k)^gamma (-log p_k)``, where q is t
    with the share ``smoothing`` spread over all classes and w the class weights. The batch's loss
    is the sum over its images divided by the sum of the weights of their classes, as in
    ``torch.nn.functional.cross_entropy``, which ``gamma=0, alpha=1`` equals.

    Args:
        gamma: focus: how strongly images that are right already count less; 0 is cross entropy.
        alpha: what the whole loss is multiplied by.
        smoothing: share of the target that is spread over all classes, from 0 to below 1.
        pos_weight: replaces the class weights of a two-class loss by (1, ``pos_weight``) and
            averages over the images, as torch's binary cross entropy does; null leaves them.
    """

    gamma: float = 0.0
    alpha: float = 1.0
    smoothing: float = 0.0
    pos_weight: float | None = None

    def __post_init__(self) -> None:
        """Refuse settings outside their range."""
        for name, value, top in (
            ("gamma", self.gamma, None),
            ("alpha", self.alpha, None),
            ("smoothing", self.smoothing, 1.0),
            ("pos_weight", self.pos_weight or 0.0, None),
        ):
            if value < 0 or (top is not None and value >= top):
                raise ValueError(f"loss.{name}: {value} is not in [0, {top or 'infinity'})")

    def __call__(
        self, logits: Tensor, target: Tensor, class_weights: Tensor | None = None
    ) -> Tensor:
        """Scalar loss of logits (B, K) and labels (B,), or class shares (B, K) of mixed images.

        Shares are averaged over the images, weighted or not: torch's own rule for them.
        """
        if self.pos_weight is not None:
            class_weights = logits.new_tensor([1.0, self.pos_weight])
        losses, weights = self.rows(logits, target, class_weights)
        plain_mean = target.ndim == 2 or self.pos_weight is not None
        return losses.sum() / (len(losses) if plain_mean else weights.sum())

    def rows(
        self, logits: Tensor, target: Tensor, class_weights: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Each image's weighted loss, and the weight of its class (1 for shares): (B,) each."""
        terms, classes = self._terms(logits), logits.shape[1]
        shares = target if target.ndim == 2 else functional.one_hot(target, classes)
        smooth = shares * (1 - self.smoothing) + self.smoothing / classes
        weights = terms.new_ones(classes) if class_weights is None else class_weights.to(terms)
        sizes = terms.new_ones(len(terms)) if target.ndim == 2 else weights[target]
        return self.alpha * (smooth * weights * terms).sum(dim=1), sizes

    def _terms(self, logits: Tensor) -> Tensor:
        """The focal cost of each class being the true one, (B, K), in single precision."""
        log_p = functional.log_softmax(logits.float(), dim=1)
        if self.gamma == 0:
            return -log_p
        smallest = torch.finfo(log_p.dtype).tiny  # the root's slope at p = 1 stays finite
        return -log_p * (-torch.expm1(log_p)).clamp_min(smallest) ** self.gamma


def binary_logits(z: Tensor) -> Tensor:
    """The two logits [0, z] of one sigmoid logit (B,) or (B, 1): their softmax is its sigmoid.

    With them every loss and table made for classes serves a sigmoid head: cross entropy on them is
    binary cross entropy on z, and class weights [1, w] act as its ``pos_weight`` w.
    """
    z = z.reshape(-1, 1)
    return torch.cat([torch.zeros_like(z), z], dim=1)
