"""Grad-CAM: where in an image a module finds the evidence for a class."""

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import pytorch_grad_cam as methods
import torch
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import Tensor, nn

from evaluation.metrics.spec import MAPS
from lightning_modules.model_info import CamLayer, cam_layer

METHODS: dict[str, Any] = {name: getattr(methods, name.replace("++", "PlusPlus")) for name in MAPS}
CLASSLESS = ("EigenCAM",)  # their map is the same whatever class is asked for


class Explained(Protocol):
    """A module whose network can be asked for a map."""

    class_names: list[str]
    net: nn.Module

    def logits(self, outputs: Tensor) -> Tensor:
        """One logit a class, (B, K), of the network's outputs."""


@dataclass(frozen=True)
class Maps:
    """What a module said of a batch, and where it looked.

    Args:
        maps: (B, H, W) float32 of the input's size, each from 0 to 1; all 0 where nothing in the
            image speaks for the class.
        classes: (B,) the class that each map is of.
        logits: (B, K), as the module's own.
    """

    maps: np.ndarray
    classes: np.ndarray
    logits: np.ndarray


class Explainer:
    """Maps of one module for images of one size; between calls it holds no hook.

    Args:
        module: a classifier; its weights, gradients and modes are left as they are.
        size: side of the images in pixels, which decides the layer.
        method: a name of `METHODS`.
    """

    def __init__(self, module: Explained, size: int, method: str = "GradCAM") -> None:
        if method not in METHODS:
            raise ValueError(f"method: {method!r} is not one of {', '.join(METHODS)}")
        self.module, self.method = module, method
        with at_rest(module.net):  # recomputed stages are run past their hooks
            self.layers = cam_layers(module.net, size)

    def __call__(self, images: Tensor, classes: Sequence[int] | None = None) -> Maps:
        """Maps of the classes asked for, one an image; of the answers if none are."""
        asked = _Asked(self.module)
        with at_rest(self.module.net), leaves(self.module.net, self.layers), _quiet(self.method):
            cam = METHODS[self.method](asked, self._modules(), reshape_transform=self._reshape())
            try:
                targets = None if classes is None else self._targets(classes, len(images))
                maps = np.asarray(cam(images.clone(), targets), dtype=np.float32)
            finally:
                cam.activations_and_grads.release()
        answers = asked.logits.argmax(axis=1) if classes is None else np.asarray(classes)
        return Maps(np.nan_to_num(maps), answers, asked.logits)

    def _modules(self) -> list[nn.Module]:
        return [self.module.net.get_submodule(layer.name) for layer in self.layers]

    def _reshape(self) -> Callable[[Tensor], Tensor]:
        return self.layers[0].maps

    def _targets(self, classes: Sequence[int], images: int) -> list[ClassifierOutputTarget]:
        names = self.module.class_names
        wrong = [k for k in classes if not 0 <= k < len(names)]
        if wrong or len(classes) != images:
            raise ValueError(
                f"classes: {list(classes)} for {images} images; one an image, 0 to {len(names) - 1}"
            )
        return [ClassifierOutputTarget(k) for k in classes]


class _Asked(nn.Module):
    """The module as grad-cam sees it: one score a class, whatever the head."""

    def __init__(self, module: Explained) -> None:
        super().__init__()
        self.net, self.head = module.net, module.logits
        self.logits = np.empty((0, 0))

    def forward(self, image: Tensor) -> Tensor:
        """Log-odds of each class, (B, K).

        A logit alone may rise where all classes' logits rise, is constant for a sigmoid's first
        class, and stands still once coupled pairs are sure; against its rivals it does not.
        """
        logits = self.head(self.net(image))
        if not len(self.logits):  # methods that try masked images come here again
            self.logits = logits.detach().float().cpu().numpy()
        return log_odds(logits)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Leaves gradients alone: parameters at rest get none, and training may be underway."""

    def train(self, mode: bool = True) -> "_Asked":
        """Leaves the mode to `at_rest`."""
        return self


def log_odds(logits: Tensor) -> Tensor:
    """Of each class against all others together, (B, K)."""
    classes = logits.shape[1]
    others = logits.unsqueeze(1).expand(-1, classes, -1)
    own = torch.eye(classes, dtype=torch.bool, device=logits.device)
    return logits - others.masked_fill(own, float("-inf")).logsumexp(dim=2)


def cam_layers(net: nn.Module, size: int) -> list[CamLayer]:
    """The recommended layer for images of `size` pixels; of trunks side by side one each."""
    trunks = getattr(net, "trunks", None)
    prefixes = [f"trunks.{at}." for at in range(len(trunks))] if trunks is not None else [""]
    found = cam_layer(net if trunks is None else trunks[0], (3, size, size))
    if found is None:
        raise ValueError(f"{type(net).__name__} has no layer with maps, so it cannot be explained")
    name, rest = found.name, (found.layout, found.height, found.width, found.prefix)
    return [CamLayer(prefix + name, *rest) for prefix in prefixes]


@contextmanager
def at_rest(net: nn.Module) -> Iterator[None]:
    """Eval mode, no parameter learns, nothing is recomputed; afterwards all is as it was."""
    modes = [(module, module.training) for module in net.modules()]
    learning = [(parameter, parameter.requires_grad) for parameter in net.parameters()]
    saved: list[Any] = [m for m in net.modules() if getattr(m, "grad_checkpointing", False) is True]
    net.eval().requires_grad_(False)
    for module in saved:  # recomputing would run past the hooks of whole stages
        module.grad_checkpointing = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for parameter, learns in learning:
            parameter.requires_grad_(learns)
        for module in saved:
            module.grad_checkpointing = True


@contextmanager
def leaves(net: nn.Module, layers: Sequence[CamLayer]) -> Iterator[None]:
    """Gradients begin at the layers, so that a map costs little more than a forward pass."""

    def leaf(_: nn.Module, __: object, output: Tensor) -> Tensor:
        # a copy, since the next layer may write into what it is given
        return output.detach().requires_grad_().clone() if torch.is_grad_enabled() else output

    hooks = [net.get_submodule(layer.name).register_forward_hook(leaf) for layer in layers]
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _quiet(method: str) -> contextlib.AbstractContextManager[object]:
    """Hides the progress bar that ScoreCAM draws for every image."""
    hidden = method == "ScoreCAM"
    return contextlib.redirect_stderr(io.StringIO()) if hidden else contextlib.nullcontext()
