"""What masks are, as plain data: in a checkpoint's state, in history.csv and in sparsity.json."""

from typing import Any

from torch import nn

from callbacks import weights
from callbacks.sparse_training import masks
from callbacks.sparse_training.masked_weights import MaskedWeights
from callbacks.sparse_training.masks import Layer
from callbacks.sparse_training.prunable import Prunable
from evaluation import sparsity


def state(found: Prunable, held: MaskedWeights) -> dict[str, Any]:
    """Layers and packed masks with their hash."""
    packed = held.packed()
    layers = [[layer.name, list(layer.shape), layer.positions] for layer in found.layers]
    digest = masks.digest(found.layers, packed)
    return {"layers": layers, "macs": found.macs, "left_out": found.left_out, "masks": packed,
            "digest": digest}  # fmt: skip


def taken(state: dict[str, Any], module: nn.Module) -> tuple[Prunable, MaskedWeights]:
    """The masks of `state`, held on the module; another hash than the stated one is an error."""
    layers = [Layer(name, tuple(shape), n) for name, shape, n in state["layers"]]
    if masks.digest(layers, state["masks"]) != state["digest"]:
        raise ValueError("masks: the checkpoint's do not have the hash that it states")
    held = MaskedWeights(module, layers)
    held.put([masks.unpack(m, la.size) for m, la in zip(state["masks"], layers, strict=True)])
    return Prunable(layers, state["left_out"], state["macs"]), held


def shares(found: Prunable, held: MaskedWeights, module: nn.Module) -> dict[str, float]:
    """Shares of numbers kept and of zeros, and theoretical multiply-accumulates."""
    kept = [int(mask.sum()) for mask in held.kept]
    each = zip(found.layers, kept, strict=True)
    macs = sparsity.macs(found.macs, [(la.size, k, la.positions) for la, k in each])
    return {
        "activation_rate": sum(kept) / sum(layer.size for layer in found.layers),
        "weights_zero_fraction": weights.zeros(module),
        "macs_theoretical": float(macs),
        "macs_theoretical_ratio": macs / found.macs,
    }


def file(found: Prunable, held: MaskedWeights, module: nn.Module) -> dict[str, Any]:
    """What sparsity.json says of the masks; what was not measured is null."""
    layers = [
        {"name": la.name, "shape": list(la.shape), "numbers": la.size, "kept": int(m.sum()),
         "macs": la.macs, "macs_theoretical": int(m.sum()) * la.positions}
        for la, m in zip(found.layers, held.kept, strict=True)
    ]  # fmt: skip
    digest = masks.digest(found.layers, held.packed())
    return {**shares(found, held, module), "macs_dense": found.macs,
            "latency_ratio_measured": None, "energy_ratio_measured": None,
            "masks": digest, "layers": layers, "left_out": found.left_out}  # fmt: skip
