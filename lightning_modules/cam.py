"""Saliency maps of a module: Grad-CAM and its relatives, by the package grad-cam."""

import contextlib
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pytorch_grad_cam as methods
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from evaluation.saliency import SALIENCY_METHODS
from lightning_modules.freezing import eval_mode
from lightning_modules.model_info import CamLayer, cam_layer

METHODS: dict[str, Any] = {
    name: getattr(methods, name.replace("++", "PlusPlus")) for name in SALIENCY_METHODS
}
CLASS_INDEPENDENT = ("EigenCAM",)  # methods whose map is the same for every class


class Explainable(Protocol):
    """A module whose network can be explained by saliency maps."""

    class_names: list[str]
    net: nn.Module

    def logits(self, outputs: Tensor) -> Tensor:
        """One logit per class, (B, K), of the network's outputs."""


@dataclass(frozen=True)
class Explanation:
    """Saliency maps of a batch, with the logits of the module.

    Args:
        maps: (B, H, W) float32 of the size of the input, each from 0 to 1; all 0 if no region
            supports the class.
        classes: (B,) class of each map.
        logits: (B, K) logits of the module.
    """

    maps: np.ndarray
    classes: np.ndarray
    logits: np.ndarray


class Explainer:
    """Computes saliency maps of one module for images of one size.

    Weights, gradients, hooks and train/eval modes of the module are the same after each call.

    Args:
        module: a classifier.
        size: side of the images in pixels, which determines the layer.
        method: a name of `METHODS`.
    """

    def __init__(self, module: Explainable, size: int, method: str = "GradCAM") -> None:
        if method not in METHODS:
            raise ValueError(f"method: {method!r} is not one of {', '.join(METHODS)}")
        self.module, self.method = module, method
        with frozen_for_inference(module.net):
            self.layers = cam_layers(module.net, size)

    def __call__(self, images: Tensor, classes: Sequence[int] | None = None) -> Explanation:
        """Maps of one class per image, (B,); of the predicted classes by default."""
        net, scores = self.module.net, _ClassScores(self.module)
        with frozen_for_inference(net), gradients_from(net, self.layers), _hidden_bar(self.method):
            layers = [net.get_submodule(layer.name) for layer in self.layers]
            reshape = self.layers[0].feature_maps
            cam = METHODS[self.method](scores, layers, reshape_transform=reshape)
            try:
                targets = None if classes is None else self._targets(classes, len(images))
                maps = np.asarray(cam(images.clone(), targets), dtype=np.float32)
            finally:
                cam.activations_and_grads.release()
        explained = scores.logits.argmax(axis=1) if classes is None else np.asarray(classes)
        return Explanation(np.nan_to_num(maps), explained, scores.logits)

    def _targets(self, classes: Sequence[int], num_images: int) -> list[ClassifierOutputTarget]:
        num_classes = len(self.module.class_names)
        is_valid = all(0 <= k < num_classes for k in classes)
        if not is_valid or len(classes) != num_images:
            raise ValueError(
                f"classes: {list(classes)} for {num_images} images; needs one per image, "
                f"0 to {num_classes - 1}"
            )
        return [ClassifierOutputTarget(k) for k in classes]


class _ClassScores(nn.Module):
    """The module as grad-cam needs it: one score per class, whatever the head."""

    def __init__(self, module: Explainable) -> None:
        super().__init__()
        self.net, self.head = module.net, module.logits
        self.logits = np.empty((0, 0))

    def forward(self, image: Tensor) -> Tensor:
        """Log-odds of each class, (B, K).

        The gradient of a single logit can be misleading: it may rise together with all others, is
        0 for the first class of a sigmoid head, and vanishes for coupled pairs that are certain.
        """
        logits = self.head(self.net(image))
        if not len(self.logits):  # methods that mask images call this again
            self.logits = logits.detach().float().cpu().numpy()
        return log_odds(logits)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: frozen parameters get no gradients, and a training may be running."""

    def train(self, mode: bool = True) -> "_ClassScores":
        """Does nothing: `frozen_for_inference` sets the mode."""
        return self


def log_odds(logits: Tensor) -> Tensor:
    """Log-odds of each class against all others together, (B, K)."""
    num_classes = logits.shape[1]
    others = logits.unsqueeze(1).expand(-1, num_classes, -1)
    diagonal = torch.eye(num_classes, dtype=torch.bool, device=logits.device)
    return logits - others.masked_fill(diagonal, float("-inf")).logsumexp(dim=2)


def cam_layers(net: nn.Module, size: int) -> list[CamLayer]:
    """The recommended layer for images of `size` pixels; of parallel trunks one each."""
    trunks = getattr(net, "trunks", None)
    prefixes = [f"trunks.{i}." for i in range(len(trunks))] if trunks is not None else [""]
    layer = cam_layer(net if trunks is None else trunks[0], (3, size, size))
    if layer is None:
        raise ValueError(
            f"{type(net).__name__} has no layer with feature maps, so it has no saliency maps"
        )
    return [replace(layer, name=prefix + layer.name) for prefix in prefixes]


@contextmanager
def frozen_for_inference(net: nn.Module) -> Iterator[None]:
    """Eval mode without gradients of parameters and without gradient checkpointing.

    Gradient checkpointing would recompute whole stages past their hooks. Everything is restored
    afterwards.
    """
    trainable = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    checkpointed: list[Any] = [
        layer for layer in net.modules() if getattr(layer, "grad_checkpointing", False) is True
    ]
    with eval_mode(net):
        net.requires_grad_(False)
        for layer in checkpointed:
            layer.grad_checkpointing = False
        try:
            yield
        finally:
            for parameter, requires_grad in trainable:
                parameter.requires_grad_(requires_grad)
            for layer in checkpointed:
                layer.grad_checkpointing = True


@contextmanager
def gradients_from(net: nn.Module, layers: Sequence[CamLayer]) -> Iterator[None]:
    """Lets gradients begin at the layers, so that a map costs little more than a forward pass."""

    def as_leaf(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # cloned, since the next layer may change its input in place
        return output.detach().requires_grad_().clone() if torch.is_grad_enabled() else output

    hooks = [net.get_submodule(layer.name).register_forward_hook(as_leaf) for layer in layers]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _hidden_bar(method: str) -> contextlib.AbstractContextManager[object]:
    """Hides the progress bar that ScoreCAM shows for every image."""
    has_bar = method == "ScoreCAM"
    return contextlib.redirect_stderr(io.StringIO()) if has_bar else contextlib.nullcontext()
