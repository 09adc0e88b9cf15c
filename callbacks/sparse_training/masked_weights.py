"""Which weights of a module can be pruned, their masks, and what must stay 0 with them."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from callbacks.sparse_training import masks
from callbacks.sparse_training.masks import PrunableWeight
from evaluation.sparsity import theoretical_macs
from lightning_modules.model_info import layer_macs, zero_fraction

INT_TYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # by bytes per value
MIN_SIZE = 4096  # values; smaller weights save little and are the most sensitive


@dataclass(frozen=True)
class PrunableWeights:
    """The weights of a module that can be pruned, and the others."""

    weights: list[PrunableWeight]
    excluded: dict[str, str]  # name of another weight -> why it cannot be pruned
    macs: int  # multiply-accumulates of all weights for one image


class MaskedWeights:
    """Sets pruned values to exactly 0 in weights, gradients, optimizer state and averages.

    Masks act on bits: other values do not change, and pruned ones are +0 even if they were NaN.
    """

    def __init__(self, module: nn.Module, prunable: PrunableWeights) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for weight in prunable.weights:
            tensor = parameters.get(weight.name)
            if tensor is None or tuple(tensor.shape) != weight.shape:
                shape = "absent" if tensor is None else tuple(tensor.shape)
                raise ValueError(f"masks: {weight.name} is {shape}, its mask is {weight.shape}")
        self.prunable, self.weights = prunable, prunable.weights
        self.sizes = [weight.size for weight in self.weights]
        self.tensors = [parameters[weight.name] for weight in self.weights]
        self.masks = [torch.ones_like(t, dtype=torch.bool).reshape(-1) for t in self.tensors]
        self._bits: dict[int, Tensor] = {}  # of the weights with pruned values, by position

    @classmethod
    def from_state(cls, state: dict[str, Any], module: nn.Module) -> Self:
        """Restores what `state_dict` returned, for `module`; ValueError if the digest is wrong."""
        weights = [PrunableWeight(name, tuple(shape), n) for name, shape, n in state["layers"]]
        if masks.masks_digest(weights, state["masks"]) != state["digest"]:
            raise ValueError("masks: those of the checkpoint do not have the digest it states")
        masked = cls(module, PrunableWeights(weights, state["excluded"], state["macs"]))
        masked.set_masks(map(masks.unpack_mask, state["masks"], masked.sizes))
        return masked

    def state_dict(self) -> dict[str, Any]:
        """Prunable weights, masks as packed bits and their digest, as plain data and tensors."""
        packed = self.packed_masks()
        return {
            "layers": [[w.name, list(w.shape), w.positions] for w in self.weights],
            "macs": self.prunable.macs,
            "excluded": self.prunable.excluded,
            "masks": packed,
            "digest": masks.masks_digest(self.weights, packed),
        }

    def set_masks(self, new_masks: Iterable[Tensor]) -> None:
        """Replaces the masks, flat and bool, one per weight; the `mask_*` methods apply them."""
        self.masks = [m.to(t.device) for m, t in zip(new_masks, self.tensors, strict=True)]
        pruned = [i for i, mask in enumerate(self.masks) if not bool(mask.all())]
        self._bits = {i: _mask_bits(self.masks[i], self.tensors[i]) for i in pruned}

    def pruned_masks(
        self, density: float, distribution: str, criterion: str, remaining: float
    ) -> list[Tensor]:
        """Masks, one per weight, in which the fraction `remaining` of the pruning is not done yet.

        The density falls from 1 at `remaining` 1 to `density` at `remaining` 0.
        """
        if criterion == "magnitude":
            scores = list(map(masks.magnitude_scores, self.tensors, self.masks))
        else:
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) * 100_003
            random = [masks.random_scores(size, seed + i) for i, size in enumerate(self.sizes)]
            scores = [s.to(m.device) * m for s, m in zip(random, self.masks, strict=True)]
        final = masks.nonzeros_per_weight(self.weights, density, distribution)
        if distribution != "global":
            counts = masks.interpolate_nonzeros(final, self.sizes, remaining)
            return list(map(masks.top_k, scores, counts))
        total = sum(self.sizes)
        [k] = masks.interpolate_nonzeros([round(density * total)], [total], remaining)
        minimums = [min(n, int(mask.sum())) for n, mask in zip(final, self.masks, strict=True)]
        return masks.top_k_global(scores, k, minimums)

    def regrown_masks(self, fraction: float) -> list[Tensor] | None:
        """Masks, one per weight, after `masks.drop_and_grow`; None without finite gradients."""
        gradients = [t.grad for t in self.tensors if t.grad is not None]
        if len(gradients) < len(self.tensors) or not all(g.isfinite().all() for g in gradients):
            return None
        scores, by_gradient = (map(masks.magnitude_scores, t) for t in (self.tensors, gradients))
        parts = zip(scores, by_gradient, self.masks, strict=True)
        return [masks.drop_and_grow(s, g, mask, fraction) for s, g, mask in parts]

    def changed_fraction(self, before: list[Tensor] | None) -> float:
        """Fraction of the mask values that differ from masks `before`; 0 if that is None."""
        pairs = zip(before, self.masks, strict=True) if before else ()
        return sum(int((old != new).sum()) for old, new in pairs) / sum(self.sizes)

    def mask_gradients(self) -> None:
        """Zeroes the gradients of pruned values."""
        for i, bits in self._bits.items():
            if (gradient := self.tensors[i].grad) is not None:
                _apply_bits(gradient, bits)

    def mask_weights(self) -> None:
        """Zeroes the pruned values of the weights."""
        for i, bits in self._bits.items():
            _apply_bits(self.tensors[i].data, bits)

    def mask_optimizer_state(self, optimizer: Optimizer) -> None:
        """Zeroes the state (momentum, squares) that an optimizer has for pruned values."""
        for i, bits in self._bits.items():
            for state in state_tensors(optimizer, self.tensors[i]):
                _apply_bits(state, bits)

    def mask_copy(self, module: nn.Module) -> None:
        """Zeroes pruned values in a copy of the module, such as an average."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for i, bits in self._bits.items():
            tensor = parameters[self.weights[i].name].data
            _apply_bits(tensor, bits.to(tensor.device))

    def unmasked_names(self, tensors: Iterable[Tensor | None]) -> list[str]:
        """Names of the weights whose entry in `tensors` (one per weight) is not 0 where pruned."""
        parts = zip(self.weights, self.masks, tensors, strict=True)
        return [w.name for w, mask, t in parts if t is not None and _has_unmasked(t, mask)]

    def verify(self, optimizers: Sequence[Optimizer]) -> None:
        """ValueError if a pruned value is not 0 in the weights or in the state of an optimizer."""
        if names := self.unmasked_names(self.tensors):
            raise ValueError(f"masks: do not match the weights: pruned values of {names} are not 0")
        for optimizer in optimizers:
            for weight, tensor, mask in zip(self.weights, self.tensors, self.masks, strict=True):
                if any(_has_unmasked(state, mask) for state in state_tensors(optimizer, tensor)):
                    raise ValueError(f"masks: do not match the optimizer's state of {weight.name}")

    def packed_masks(self) -> list[Tensor]:
        """The masks as bytes of eight entries, one uint8 tensor per weight."""
        return list(map(masks.pack_mask, self.masks))

    def sparsity_metrics(self, module: nn.Module) -> dict[str, float]:
        """Density, fraction of all parameters that are 0, theoretical MACs (ratio: to dense)."""
        nonzeros = [int(mask.sum()) for mask in self.masks]
        layers = [(w.size, k, w.positions) for w, k in zip(self.weights, nonzeros, strict=True)]
        macs = theoretical_macs(self.prunable.macs, layers)
        return {
            "density": sum(nonzeros) / sum(self.sizes),
            "weights_zero_fraction": zero_fraction(module),
            "macs_theoretical": float(macs),
            "macs_theoretical_ratio": macs / self.prunable.macs,
        }

    def report(self, module: nn.Module) -> dict[str, Any]:
        """The content of sparsity.json; what is not measured is null."""
        layers = []
        for weight, mask in zip(self.weights, self.masks, strict=True):
            nonzeros = int(mask.sum())
            layer = {"name": weight.name, "shape": list(weight.shape), "size": weight.size}
            costs = {"macs": weight.macs, "macs_theoretical": nonzeros * weight.positions}
            layers.append({**layer, "nonzeros": nonzeros, **costs})
        return {
            **self.sparsity_metrics(module),
            "macs_dense": self.prunable.macs,
            "latency_ratio_measured": None,
            "energy_ratio_measured": None,
            "masks": masks.masks_digest(self.weights, self.packed_masks()),
            "layers": layers,
            "excluded": self.prunable.excluded,
        }


def state_tensors(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """Tensors of an optimizer's state with the shape of the parameter (momentum, squares)."""
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    return [tensor for tensor in tensors if tensor.shape == parameter.shape]


def _mask_bits(mask: Tensor, tensor: Tensor) -> Tensor:
    """Integers of the size and shape of `tensor`: all bits are 1 where `mask` is True, else 0."""
    bits = mask.to(INT_TYPES[tensor.element_size()]).neg_().reshape(tensor.shape)
    return torch.empty_like(tensor, dtype=bits.dtype).copy_(bits)  # in the tensor's memory format


def _apply_bits(tensor: Tensor, bits: Tensor) -> None:
    """Bitwise AND of `tensor` and `bits` in place: pruned values become +0, others stay."""
    dtype = INT_TYPES[tensor.element_size()]
    tensor.detach().view(dtype).bitwise_and_(bits if bits.dtype == dtype else bits.to(dtype))


def _has_unmasked(tensor: Tensor, mask: Tensor) -> bool:
    """Whether a value of `tensor` is not 0 where the flat `mask` is False."""
    return bool((tensor.detach().reshape(-1)[~mask.to(tensor.device)] != 0).any())


def find_prunable(module: nn.Module, image: Tensor, exclude: Sequence[str] = ()) -> PrunableWeights:
    """Weights of ungrouped convolutions and linear layers that process `image` (1, C, H, W).

    Excluded are the layer that reads the image, the classifier, layers that have a 1 x 1 kernel and
    only one output position (squeeze-excite), tensors of less than 4,096 values, and names that
    match `exclude`. A weight that is used twice counts once, and is excluded if one of its uses is.
    """
    names, tensors = dict[int, str](), dict[str, Tensor]()  # a shared weight has its first name
    positions, reasons, uses = Counter[str](), dict[str, str](), list[str]()
    for use in layer_macs(module, image):
        require_plain_weight(use.name, use.weight)
        name = names.setdefault(id(use.weight), use.name)
        tensors[name] = use.weight
        positions[name] += use.positions
        uses.append(name)
        if isinstance(use.layer, nn.Conv2d) and use.layer.groups > 1:
            reasons[name] = "grouped or depthwise convolution"
    reasons = _outer_layers(module, uses, tensors) | reasons
    for name, tensor in tensors.items():
        if reason := _exclusion_reason(name, tensor, positions[name], exclude):
            reasons.setdefault(name, reason)
    shapes = {name: tuple(t.shape) for name, t in tensors.items() if name not in reasons}
    weights = [PrunableWeight(name, shape, positions[name]) for name, shape in shapes.items()]
    if not weights:
        text = "; ".join(sorted(set(reasons.values()))) or "no layer is used"
        raise ValueError(f"no weight can be pruned: {text}")
    excluded = {name: reasons[name] for name in tensors if name in reasons}
    other = "not the weight of a convolution, linear or attention layer that processes images"
    excluded |= {name: other for name, p in module.named_parameters() if id(p) not in names}
    macs = sum(positions[name] * tensor.numel() for name, tensor in tensors.items())
    return PrunableWeights(weights, excluded, macs)


def require_plain_weight(name: str, weight: object) -> None:
    """ValueError if a weight is quantized, or sharded over processes or wrapped otherwise."""
    if not isinstance(weight, Tensor) or not weight.is_floating_point():
        kind = weight.dtype if isinstance(weight, Tensor) else "packed"
        raise ValueError(f"{name}: quantized weights ({kind}) cannot be pruned; prune before")
    if type(weight.data) is not Tensor:
        kind = type(weight.data).__name__
        raise ValueError(f"{name}: sharded or wrapped weights ({kind}) cannot be pruned")


def _exclusion_reason(name: str, tensor: Tensor, positions: int, exclude: Sequence[str]) -> str:
    """Why `find_prunable` excludes a weight by its name, kernel or size; "" if it does not.

    `positions`: how many times an image uses each value of the weight.
    """
    for pattern in exclude:
        if re.search(pattern, name):
            return f"matches exclude {pattern!r}"
    if positions <= 1 and all(side == 1 for side in tensor.shape[2:]):
        return "one multiply-accumulate per value (squeeze-excite)"
    return f"fewer than {MIN_SIZE:,} values" if tensor.numel() < MIN_SIZE else ""


def _outer_layers(
    module: nn.Module, uses: Sequence[str], tensors: dict[str, Tensor]
) -> dict[str, str]:
    """Why the weights of the first layer and the classifier of each trunk are excluded, by name."""
    net, reasons = getattr(module, "net", module), dict[str, str]()
    for trunk in getattr(net, "trunks", [net]):
        ids = {id(parameter) for parameter in trunk.parameters()}
        names = [name for name in uses if id(tensors[name]) in ids]
        getter = getattr(trunk, "get_classifier", None)
        head = {id(p) for p in getter().parameters()} if getter is not None else set()
        for name in names[:1]:
            reasons.setdefault(name, "reads the image")
        for name in [*names[-1:], *(name for name in names if id(tensors[name]) in head)]:
            reasons.setdefault(name, "computes the logits")
    return reasons
