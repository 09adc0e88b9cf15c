"""Saliency maps of a module: Grad-CAM and its relatives, by the package grad-cam."""

import io
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stderr
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import pytorch_grad_cam as methods
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from evaluation.saliency import SALIENCY_METHODS
from lightning_modules.freezing import eval_mode, require
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
    """Saliency maps of a batch: all 0 if no region supports the class."""

    maps: np.ndarray  # (B, H, W) float32 of the size of the input, each from 0 to 1
    classes: np.ndarray  # (B,) class of each map
    logits: np.ndarray  # (B, K) of the module


class Explainer:
    """Computes saliency maps of a module by a `method` of `METHODS`.

    `size` is the side of the images in pixels, which determines the layer. Weights, gradients,
    hooks and train/eval modes of the module are the same after each call.
    """

    def __init__(self, module: Explainable, size: int, method: str = "GradCAM") -> None:
        require("method", repr(method), method in METHODS, f"one of {', '.join(METHODS)}")
        self.module, self.method = module, method
        with frozen_for_inference(module.net):
            self.layers = cam_layers(module.net, size)

    def __call__(self, images: Tensor, classes: Sequence[int] | None = None) -> Explanation:
        """Explains one class per image: `classes` (B,), by default the predicted ones."""
        net, scores = self.module.net, _ClassScores(self.module)
        has_bar = self.method == "ScoreCAM"  # a progress bar for every image
        hidden_bar = redirect_stderr(io.StringIO()) if has_bar else nullcontext()
        with frozen_for_inference(net), gradients_from(net, self.layers), hidden_bar:
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
        """`classes` as grad-cam expects them; ValueError unless each image has a valid class."""
        last = len(self.module.class_names) - 1
        if len(classes) != num_images or not all(0 <= k <= last for k in classes):
            given = f"{list(classes)} for {num_images} images"
            raise ValueError(f"classes: {given}; needs one per image, 0 to {last}")
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
    """The recommended layer for images of `size` pixels, or one per trunk; ValueError if none."""
    trunks = list(getattr(net, "trunks", []))
    layer = cam_layer(trunks[0] if trunks else net, (3, size, size))
    if layer is None:
        name = type(net).__name__
        raise ValueError(f"{name} has no layer with feature maps, so it has no saliency maps")
    return [replace(layer, name=f"trunks.{i}.{layer.name}") for i in range(len(trunks))] or [layer]


@contextmanager
def frozen_for_inference(net: nn.Module) -> Iterator[None]:
    """Context with `net` in eval mode and its parameters frozen; restores both at exit.

    Gradient checkpointing, which bypasses hooks, is off inside it.
    """
    trainable = [parameter for parameter in net.parameters() if parameter.requires_grad]
    layers: list[Any] = list(net.modules())
    checkpointed = [m for m in layers if getattr(m, "grad_checkpointing", False) is True]
    try:
        with eval_mode(net.requires_grad_(False)):
            for layer in checkpointed:
                layer.grad_checkpointing = False
            yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for layer in checkpointed:
            layer.grad_checkpointing = True


@contextmanager
def gradients_from(net: nn.Module, layers: Sequence[CamLayer]) -> Iterator[None]:
    """Context in which gradients start at `layers`: a map costs little more than a forward pass."""

    def as_leaf(_: nn.Module, __: object, output: Tensor) -> Tensor:
        """Replaces an output by a new leaf, cloned: the next layer may change it in place."""
        return output.detach().requires_grad_().clone() if torch.is_grad_enabled() else output

    with ExitStack() as hooks, torch.inference_mode(False), torch.enable_grad():
        for layer in layers:
            submodule = net.get_submodule(layer.name)
            hooks.enter_context(submodule.register_forward_hook(as_leaf))
        yield
