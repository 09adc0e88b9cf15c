"""What of a module may be pruned, decided by one dry forward pass."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from callbacks.sparse_training.masks import Layer

SMALLEST = 4096  # tensors below it weigh nothing, and are hurt first


@dataclass
class Found:
    """One weight as the forward pass met it."""

    name: str
    weight: Tensor
    positions: int = 0
    reason: str = ""


@dataclass(frozen=True)
class Prunable:
    """The weights that may be pruned, and of all others why not; MACs of one image in all."""

    layers: list[Layer]
    left_out: dict[str, str] = field(default_factory=dict)
    macs: int = 0


def prunable(module: nn.Module, image: Tensor, exclude: Sequence[str] = ()) -> Prunable:
    """Weights of ungrouped convolutions and linear layers that `image` (1, C, H, W) goes through.

    Out are the layer that sees the image, the one that makes the logits, layers of one pixel with
    one MAC a weight (squeeze-excite), tensors under 4,096 numbers, and names that match `exclude`.
    A weight that two layers share is counted once, and is out when one of its uses is. The module
    is left as it was: no statistics move and no random number is drawn.
    """
    found = _watched(module, image)
    for seen in found:
        seen.reason = seen.reason or _reason(seen, exclude)
    named = {id(seen.weight) for seen in found}
    others = {
        name: "a norm, a bias or a table, or never multiplied by an image"
        for name, parameter in module.named_parameters()
        if id(parameter) not in named
    }
    layers = [Layer(s.name, tuple(s.weight.shape), s.positions) for s in found if not s.reason]
    _require(layers, found)
    macs = sum(seen.positions * seen.weight.numel() for seen in found)
    return Prunable(layers, {s.name: s.reason for s in found if s.reason} | others, macs)


def require_dense(name: str, weight: object) -> None:
    """Refuses weights that are sharded over processes or quantized."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else "packed"
        raise ValueError(f"{name}: quantized weights ({kind}) cannot be pruned; prune before")
    if type(weight.data) is not Tensor:
        kind = type(weight.data).__name__
        raise ValueError(f"{name}: sharded or wrapped weights ({kind}) cannot be pruned")


def _require(layers: Sequence[Layer], found: Sequence[Found]) -> None:
    if layers:
        return
    reasons = sorted({seen.reason for seen in found})
    raise ValueError(f"nothing is left to prune: {'; '.join(reasons) or 'no layer was met'}")


def _reason(seen: Found, exclude: Sequence[str]) -> str:
    matched = [pattern for pattern in exclude if re.search(pattern, seen.name)]
    if matched:
        return f"matches exclude {matched[0]!r}"
    if seen.positions <= 1 and all(side == 1 for side in seen.weight.shape[2:]):
        return "one multiply-accumulate a weight (squeeze-excite)"
    return f"fewer than {SMALLEST:,} numbers" if seen.weight.numel() < SMALLEST else ""


def _watched(module: nn.Module, image: Tensor) -> list[Found]:
    """Every weight that the forward pass multiplies by, in the order in which it is met."""
    met: dict[int, Found] = {}
    order: list[Found] = []

    def note(name: str, weight: Tensor, positions: int, reason: str = "") -> None:
        require_dense(name, weight)
        seen = met.setdefault(id(weight), Found(name, weight))
        seen.positions += positions
        seen.reason = seen.reason or reason
        order.append(seen)

    hooks = [layer.register_forward_hook(_hook(name, note)) for name, layer in _layers(module)]
    try:
        _dry_run(module, image)
    finally:
        for hook in hooks:
            hook.remove()
    _mark_ends(module, order)
    return list(met.values())


def _layers(module: nn.Module) -> list[tuple[str, nn.Module]]:
    kinds = (nn.Conv2d, nn.Linear, nn.MultiheadAttention)
    packed = [n for n, m in module.named_modules() if "quantized" in type(m).__module__]
    if packed:
        raise ValueError(f"{packed[0]}: quantized weights cannot be pruned; prune before")
    return [(name, layer) for name, layer in module.named_modules() if isinstance(layer, kinds)]


def _hook(name: str, note: Callable[..., None]) -> Callable[..., None]:
    def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if isinstance(layer, nn.Conv2d):
            grouped = "" if layer.groups == 1 else "grouped or depthwise convolution"
            note(f"{name}.weight", layer.weight, output.shape[-2] * output.shape[-1], grouped)
        elif isinstance(layer, nn.Linear):
            note(f"{name}.weight", layer.weight, output.numel() // output.shape[-1])
        elif isinstance(layer, nn.MultiheadAttention) and layer.in_proj_weight is not None:
            tokens = inputs[0].numel() // inputs[0].shape[-1]
            note(f"{name}.in_proj_weight", layer.in_proj_weight, tokens)
            note(f"{name}.out_proj.weight", layer.out_proj.weight, tokens)

    return hook


def _mark_ends(module: nn.Module, order: Sequence[Found]) -> None:
    """Of each trunk the first layer sees the image, and the last and timm's classifier the logits.

    A module has one trunk, or one for each pair of classes.
    """
    whole = getattr(module, "net", module)
    for trunk in getattr(whole, "trunks", [whole]):
        own = {id(parameter) for parameter in trunk.parameters()}
        met = [seen for seen in order if id(seen.weight) in own]
        if not met:
            continue
        met[0].reason = met[0].reason or "sees the image"
        getter = getattr(trunk, "get_classifier", None)
        heads = {id(p) for p in getter().parameters()} if getter is not None else set()
        for seen in [met[-1], *(seen for seen in met if id(seen.weight) in heads)]:
            seen.reason = seen.reason or "makes the logits"


def _dry_run(module: nn.Module, image: Tensor) -> None:
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(image)
    finally:
        for part, training in modes:
            part.training = training
