"""Batch norms that are synchronized over processes, or run again by gradient checkpointing."""

from functools import partial

import torch
from lightning.pytorch.plugins import LayerSync
from timm.layers import BatchNormAct2d, SyncBatchNormAct
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class InPlaceSyncBatchNorm(LayerSync):
    """Synchronizes batch norms over processes by changing their class, as torch's lazy layers do.

    Parameters, hooks and the activations in timm's batch norms stay. Lightning's plugin puts
    torch's layer in their place, which has no activation, and leaves out hooks.
    """

    def __init__(self) -> None:
        self.classes: dict[nn.Module, type] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Synchronizes all batch norms of a model, in place."""
        for layer in model.modules():
            if isinstance(layer, _BatchNorm):
                self.classes[layer] = type(layer)
                has_activation = isinstance(layer, BatchNormAct2d)
                vars(layer)["process_group"] = None  # all processes
                layer.__class__ = SyncBatchNormAct if has_activation else nn.SyncBatchNorm
        return model

    def revert(self, model: nn.Module) -> nn.Module:
        """Gives the batch norms their own classes again."""
        for layer, own in self.classes.items():
            layer.__class__ = own
        self.classes.clear()
        return model


def update_statistics_once(net: nn.Module) -> None:
    """Makes batch norms keep their running statistics where gradient checkpointing runs them again.

    Otherwise they would update twice per step, once in the forward and once in the backward pass.
    """
    for layer in net.modules():
        if isinstance(layer, _BatchNorm):
            layer.register_forward_pre_hook(_stop_updates)
            restore = partial(_restore_updates, layer.momentum)
            # always: a recomputation ends by an exception inside the last layer that it needs
            layer.register_forward_hook(restore, always_call=True)


def _is_recomputed(layer: nn.Module) -> bool:
    """Whether this is a forward pass that gradient checkpointing repeats in the backward pass."""
    is_eager = not torch.compiler.is_compiling()  # compiled graphs do not repeat updates
    return layer.training and is_eager and torch._C._current_graph_task_id() != -1


def _stop_updates(layer: _BatchNorm, inputs: object) -> None:
    """Hook before a forward pass: a repeated one uses momentum 0, which updates nothing."""
    if _is_recomputed(layer):
        layer.momentum = 0.0


def _restore_updates(
    momentum: float | None, layer: _BatchNorm, inputs: object, output: object
) -> None:
    """Hook after a forward pass: undoes `_stop_updates` and the count of a repeated pass."""
    if _is_recomputed(layer):
        layer.momentum = momentum
        if layer.num_batches_tracked is not None:
            layer.num_batches_tracked.sub_(1)
