"""Which weights of a module can be pruned, decided by one forward pass."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor, nn

from callbacks.sparse_training.masks import PrunableWeight
from lightning_modules.model_info import layer_macs

MIN_SIZE = 4096  # smaller weights save little and are the most sensitive


@dataclass(frozen=True)
class PrunableWeights:
    """The weights that can be pruned, why others cannot, and the MACs of one image in all."""

    weights: list[PrunableWeight]
    excluded: dict[str, str] = field(default_factory=dict)
    macs: int = 0


@dataclass
class _UsedWeight:
    name: str
    tensor: Tensor
    positions: int = 0
    reason: str = ""  # why it is excluded


def find_prunable(module: nn.Module, image: Tensor, exclude: Sequence[str] = ()) -> PrunableWeights:
    """Weights of ungrouped convolutions and linear layers that process `image` (1, C, H, W).

    Excluded are the layer that reads the image, the classifier, layers with one output position
    and kernels of 1 x 1 (squeeze-excite), tensors of less than 4,096 values, and names that match
    a regular expression of `exclude`. A weight that is used twice counts once, and is excluded if
    one of its uses is. The module is not changed.
    """
    used = _used_weights(module, image)
    for weight in used:
        weight.reason = weight.reason or _exclusion_reason(weight, exclude)
    weights = [PrunableWeight(w.name, tuple(w.tensor.shape), w.positions)
               for w in used if not w.reason]  # fmt: skip
    if not weights:
        reasons = sorted({weight.reason for weight in used})
        raise ValueError(f"no weight can be pruned: {'; '.join(reasons) or 'no layer is used'}")
    used_ids = {id(weight.tensor) for weight in used}
    others = {
        name: "not the weight of a convolution, linear or attention layer that processes images"
        for name, parameter in module.named_parameters()
        if id(parameter) not in used_ids
    }
    macs = sum(weight.positions * weight.tensor.numel() for weight in used)
    return PrunableWeights(weights, {w.name: w.reason for w in used if w.reason} | others, macs)


def require_dense(name: str, weight: object) -> None:
    """Refuses weights that are sharded over processes or quantized."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else "packed"
        raise ValueError(f"{name}: quantized weights ({kind}) cannot be pruned; prune before")
    if type(weight.data) is not Tensor:
        kind = type(weight.data).__name__
        raise ValueError(f"{name}: sharded or wrapped weights ({kind}) cannot be pruned")


def _exclusion_reason(weight: _UsedWeight, exclude: Sequence[str]) -> str:
    matches = [pattern for pattern in exclude if re.search(pattern, weight.name)]
    if matches:
        return f"matches exclude {matches[0]!r}"
    if weight.positions <= 1 and all(side == 1 for side in weight.tensor.shape[2:]):
        return "one multiply-accumulate per value (squeeze-excite)"
    return f"fewer than {MIN_SIZE:,} values" if weight.tensor.numel() < MIN_SIZE else ""


def _used_weights(module: nn.Module, image: Tensor) -> list[_UsedWeight]:
    """Every weight that the forward pass uses, in the order of its first use."""
    for name, layer in module.named_modules():
        if "quantized" in type(layer).__module__:
            raise ValueError(f"{name}: quantized weights cannot be pruned; prune before")
    uses = layer_macs(module, image)
    by_id: dict[int, _UsedWeight] = {}
    for use in uses:
        require_dense(use.name, use.weight)
        weight = by_id.setdefault(id(use.weight), _UsedWeight(use.name, use.weight))
        weight.positions += use.positions
        if isinstance(use.layer, nn.Conv2d) and use.layer.groups > 1:
            weight.reason = weight.reason or "grouped or depthwise convolution"
    _exclude_ends(module, [by_id[id(use.weight)] for use in uses])
    return list(by_id.values())


def _exclude_ends(module: nn.Module, used: Sequence[_UsedWeight]) -> None:
    """Excludes the first layer and the classifier of each trunk (a module may have several)."""
    net = getattr(module, "net", module)
    for trunk in getattr(net, "trunks", [net]):
        parameter_ids = {id(parameter) for parameter in trunk.parameters()}
        weights = [weight for weight in used if id(weight.tensor) in parameter_ids]
        if not weights:
            continue
        weights[0].reason = weights[0].reason or "reads the image"
        getter = getattr(trunk, "get_classifier", None)
        head_ids = {id(p) for p in getter().parameters()} if getter is not None else set()
        for weight in [weights[-1], *(w for w in weights if id(w.tensor) in head_ids)]:
            weight.reason = weight.reason or "computes the logits"
