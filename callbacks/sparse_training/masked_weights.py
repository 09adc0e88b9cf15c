"""Masks on the weights of a module, and everything that must stay 0 with them."""

from collections.abc import Iterable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from callbacks.sparse_training.masks import (
    PrunableWeight,
    masks_digest,
    pack_mask,
    unpack_mask,
)
from callbacks.sparse_training.prunable import PrunableWeights, require_dense
from evaluation.sparsity import effective_macs
from lightning_modules.model_info import zero_fraction

INT_TYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32}  # by bytes per value


class MaskedWeights:
    """Sets pruned values to exactly 0 in weights, gradients, optimizer state and averages.

    A mask is combined with the bits of a value (all ones or all zeros), so that the other values
    do not change by a bit, and pruned ones are +0 even where they were NaN or infinite.
    """

    def __init__(self, module: nn.Module, prunable: PrunableWeights) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for weight in prunable.weights:
            tensor = parameters.get(weight.name)
            if tensor is None or tuple(tensor.shape) != weight.shape:
                shape = "absent" if tensor is None else tuple(tensor.shape)
                raise ValueError(f"masks: {weight.name} is {shape}, its mask is {weight.shape}")
            require_dense(weight.name, tensor)
        self.prunable, self.weights = prunable, prunable.weights
        self.tensors = [parameters[weight.name] for weight in self.weights]
        self.masks: list[Tensor] = [
            torch.ones(weight.size, dtype=torch.bool, device=tensor.device)
            for weight, tensor in zip(self.weights, self.tensors, strict=True)
        ]
        self._bits: list[Tensor | None] = [None] * len(self.weights)

    @classmethod
    def from_state(cls, state: dict[str, Any], module: nn.Module) -> Self:
        """The masks of `state_dict`, on a module; a wrong digest is an error."""
        weights = [PrunableWeight(name, tuple(shape), n) for name, shape, n in state["layers"]]
        if masks_digest(weights, state["masks"]) != state["digest"]:
            raise ValueError("masks: those of the checkpoint do not have the digest it states")
        masked = cls(module, PrunableWeights(weights, state["excluded"], state["macs"]))
        masked.set_masks(
            unpack_mask(m, w.size) for m, w in zip(state["masks"], weights, strict=True)
        )
        return masked

    def state_dict(self) -> dict[str, Any]:
        """Prunable weights and packed masks with their digest, as plain data."""
        packed = self.packed_masks()
        layers = [[weight.name, list(weight.shape), weight.positions] for weight in self.weights]
        return {"layers": layers, "macs": self.prunable.macs, "excluded": self.prunable.excluded,
                "masks": packed, "digest": masks_digest(self.weights, packed)}  # fmt: skip

    def set_masks(self, masks: Iterable[Tensor]) -> None:
        """Sets flat masks, one per weight; a weight without pruned values is not touched."""
        self.masks = [m.to(t.device) for m, t in zip(masks, self.tensors, strict=True)]
        self._bits = [
            None if bool(mask.all()) else _mask_bits(mask, tensor)
            for mask, tensor in zip(self.masks, self.tensors, strict=True)
        ]

    def mask_gradients(self) -> None:
        """Zeroes the gradients of pruned values."""
        for tensor, bits in zip(self.tensors, self._bits, strict=True):
            if bits is not None and tensor.grad is not None:
                _apply_bits(tensor.grad, bits)

    def mask_weights(self) -> None:
        """Zeroes pruned values."""
        for tensor, bits in zip(self.tensors, self._bits, strict=True):
            if bits is not None:
                _apply_bits(tensor.data, bits)

    def mask_optimizer_state(self, optimizer: Optimizer) -> None:
        """Zeroes an optimizer's state of pruned values."""
        for tensor, bits in zip(self.tensors, self._bits, strict=True):
            if bits is not None:
                for state in state_tensors(optimizer, tensor):
                    _apply_bits(state, bits)

    def mask_copy(self, module: nn.Module) -> None:
        """Zeroes pruned values in a copy of the module, such as an average."""
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for weight, bits in zip(self.weights, self._bits, strict=True):
            if bits is not None:
                tensor = parameters[weight.name].data
                _apply_bits(tensor, bits.to(tensor.device))

    def unmasked(self, tensors: Iterable[Tensor | None]) -> list[str]:
        """Names of the weights whose tensor (one per weight) is not 0 at a pruned value."""
        return [
            weight.name
            for weight, mask, tensor in zip(self.weights, self.masks, tensors, strict=True)
            if tensor is not None and _has_unmasked(tensor, mask)
        ]

    def verify(self, optimizers: Sequence[Optimizer]) -> None:
        """Refuses masks that disagree with the weights or with an optimizer's state."""
        if names := self.unmasked(self.tensors):
            raise ValueError(f"masks: do not match the weights: pruned values of {names} are not 0")
        for optimizer in optimizers:
            for weight, tensor, mask in zip(self.weights, self.tensors, self.masks, strict=True):
                if any(_has_unmasked(state, mask) for state in state_tensors(optimizer, tensor)):
                    raise ValueError(f"masks: do not match the optimizer's state of {weight.name}")

    def packed_masks(self) -> list[Tensor]:
        """The masks as packed bits."""
        return [pack_mask(mask) for mask in self.masks]

    def metrics(self, module: nn.Module) -> dict[str, float]:
        """Density of the prunable weights, zero fraction of all parameters, and MACs."""
        nonzeros = [int(mask.sum()) for mask in self.masks]
        layers = [(w.size, k, w.positions) for w, k in zip(self.weights, nonzeros, strict=True)]
        macs = effective_macs(self.prunable.macs, layers)
        return {
            "density": sum(nonzeros) / sum(weight.size for weight in self.weights),
            "weights_zero_fraction": zero_fraction(module),
            "macs_theoretical": float(macs),
            "macs_theoretical_ratio": macs / self.prunable.macs,
        }

    def report(self, module: nn.Module) -> dict[str, Any]:
        """The content of sparsity.json; what is not measured is null."""
        layers = [
            {"name": weight.name, "shape": list(weight.shape), "size": weight.size,
             "nonzeros": int(mask.sum()), "macs": weight.macs,
             "macs_theoretical": int(mask.sum()) * weight.positions}
            for weight, mask in zip(self.weights, self.masks, strict=True)
        ]  # fmt: skip
        digest = masks_digest(self.weights, self.packed_masks())
        return {**self.metrics(module), "macs_dense": self.prunable.macs,
                "latency_ratio_measured": None, "energy_ratio_measured": None,
                "masks": digest, "layers": layers, "excluded": self.prunable.excluded}  # fmt: skip


def state_tensors(optimizer: Optimizer, parameter: Tensor) -> list[Tensor]:
    """Tensors of an optimizer's state with the shape of the parameter (momentum, squares)."""
    state: dict[str, Any] = optimizer.state.get(parameter, {})
    return [
        value
        for value in state.values()
        if isinstance(value, Tensor) and value.shape == parameter.shape
    ]


def _mask_bits(mask: Tensor, tensor: Tensor) -> Tensor:
    bits = mask.to(INT_TYPES[tensor.element_size()]).neg_().reshape(tensor.shape)
    return torch.empty_like(tensor, dtype=bits.dtype).copy_(bits)  # in the tensor's memory format


def _apply_bits(tensor: Tensor, bits: Tensor) -> None:
    dtype = INT_TYPES[tensor.element_size()]
    tensor.detach().view(dtype).bitwise_and_(bits if bits.dtype == dtype else bits.to(dtype))


def _has_unmasked(tensor: Tensor, mask: Tensor) -> bool:
    return bool((tensor.detach().reshape(-1)[~mask.to(tensor.device)] != 0).any())
