"""Masks held on a module: its weights, their gradients, the optimizer's state and averages."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from callbacks.sparse_training import masks
from callbacks.sparse_training.masks import Layer
from callbacks.sparse_training.prunable import require_dense

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32}


class MaskedWeights:
    """Keeps pruned numbers at exactly 0 wherever they are stored.

    A mask is laid over the bits of a number (all ones or all zeros), so that kept numbers stay
    as they are to the last bit, and pruned ones are +0 even where NaN or infinity stood.
    """

    def __init__(self, module: nn.Module, layers: Sequence[Layer]) -> None:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        for layer in layers:
            found = parameters.get(layer.name)
            if found is None or tuple(found.shape) != layer.shape:
                shape = "absent" if found is None else tuple(found.shape)
                raise ValueError(f"masks: {layer.name} is {shape}, the mask has {layer.shape}")
            require_dense(layer.name, found)
        self.layers = list(layers)
        self.weights = [parameters[layer.name] for layer in layers]
        self.kept: list[Tensor] = [
            torch.ones(layer.size, dtype=torch.bool, device=weight.device)
            for layer, weight in zip(layers, self.weights, strict=True)
        ]
        self._bits: list[Tensor | None] = [None] * len(layers)

    def put(self, kept: Sequence[Tensor]) -> None:
        """Takes flat masks, one a layer; a layer that keeps everything is left alone from now."""
        self.kept = [m.to(w.device) for m, w in zip(kept, self.weights, strict=True)]
        self._bits = [
            None if bool(mask.all()) else _bits(mask, weight)
            for mask, weight in zip(self.kept, self.weights, strict=True)
        ]

    def hold_gradients(self) -> None:
        """Zeroes the gradients of pruned numbers."""
        for weight, bits in zip(self.weights, self._bits, strict=True):
            if bits is not None and weight.grad is not None:
                _cover(weight.grad, bits)

    def hold_weights(self) -> None:
        """Zeroes pruned numbers."""
        for weight, bits in zip(self.weights, self._bits, strict=True):
            if bits is not None:
                _cover(weight.data, bits)

    def hold_state(self, optimizer: Optimizer) -> None:
        """Zeroes what an optimizer remembers of pruned numbers."""
        for weight, bits in zip(self.weights, self._bits, strict=True):
            if bits is not None:
                for memory in memories(optimizer, weight):
                    _cover(memory, bits)

    def hold_copy(self, copy: nn.Module) -> None:
        """Zeroes pruned numbers in a copy of the module, an average for instance."""
        parameters = dict(copy.named_parameters(remove_duplicate=False))
        for layer, bits in zip(self.layers, self._bits, strict=True):
            if bits is not None:
                twin = parameters[layer.name]
                _cover(twin.data, bits.to(twin.device))

    def strays(self, tensors: Iterable[Tensor | None]) -> list[str]:
        """Names of the layers in whose tensor a pruned number is not 0."""
        return [
            layer.name
            for layer, kept, tensor in zip(self.layers, self.kept, tensors, strict=True)
            if tensor is not None and _strays(tensor, kept)
        ]

    def verify(self, optimizers: Sequence[Optimizer]) -> None:
        """Refuses masks that disagree with the weights or with an optimizer's state."""
        strays = self.strays(self.weights)
        if strays:
            raise ValueError(
                f"masks: do not match the weights, pruned numbers of {strays} are not 0"
            )
        for optimizer in optimizers:
            for i, weight in enumerate(self.weights):
                for memory in memories(optimizer, weight):
                    if _strays(memory, self.kept[i]):
                        name = self.layers[i].name
                        raise ValueError(f"masks: do not match the optimizer's state of {name}")

    def packed(self) -> list[Tensor]:
        """The masks as packed bits."""
        return [masks.pack(mask) for mask in self.kept]


def memories(optimizer: Optimizer, weight: Tensor) -> list[Tensor]:
    """Tensors shaped like `weight` that the optimizer keeps for it (momentum, squares)."""
    state: dict[str, Any] = optimizer.state.get(weight, {})
    return [
        value
        for value in state.values()
        if isinstance(value, Tensor) and value.shape == weight.shape
    ]


def _bits(mask: Tensor, weight: Tensor) -> Tensor:
    ones = mask.to(BITS[weight.element_size()]).neg_().reshape(weight.shape)
    return torch.empty_like(weight, dtype=ones.dtype).copy_(ones)  # in the weight's own layout


def _cover(tensor: Tensor, bits: Tensor) -> None:
    kind = BITS[tensor.element_size()]
    tensor.detach().view(kind).bitwise_and_(bits if bits.dtype == kind else bits.to(kind))


def _strays(tensor: Tensor, kept: Tensor) -> bool:
    """Whether a pruned number is not 0."""
    return bool((tensor.detach().reshape(-1)[~kept.to(tensor.device)] != 0).any())
