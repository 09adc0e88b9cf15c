"""Which numbers stay when the masks shrink, and which are exchanged."""

import os
from typing import Literal, cast

from torch import Tensor

from callbacks.sparse_training import masks
from callbacks.sparse_training.masked_weights import MaskedWeights
from callbacks.sparse_training.masks import Split

Choice = Literal["magnitude", "random"]


def fewer(
    held: MaskedWeights, density: float, split: Split, choice: Choice, left: float
) -> list[Tensor]:
    """Masks of a ramp to `density` on which the share `left` of the pruning is still to come."""
    layers, sizes = held.layers, [layer.size for layer in held.layers]
    final = masks.counts(layers, density, split)
    scores = [_scores(held, i, choice) for i in range(len(layers))]
    if split != "global":
        return masks.shrunk(scores, masks.on_the_way(final, sizes, left))
    [keep] = masks.on_the_way([masks.total(layers, density)], [sum(sizes)], left)
    floors = [min(k, int(mask.sum())) for k, mask in zip(final, held.kept, strict=True)]
    return masks.shrunk_globally(scores, keep, floors)


def exchanged(held: MaskedWeights, share: float) -> list[Tensor] | None:
    """Masks with a `share` exchanged by the gradients; None if one is missing or not finite."""
    grads = [weight.grad for weight in held.weights]
    if any(grad is None or not bool(grad.isfinite().all()) for grad in grads):
        return None
    return [
        masks.swapped(masks.magnitudes(w), masks.magnitudes(cast(Tensor, grad)), mask, share)
        for w, grad, mask in zip(held.weights, grads, held.kept, strict=True)
    ]


def _scores(held: MaskedWeights, i: int, choice: Choice) -> Tensor:
    allowed, weight = held.kept[i], held.weights[i]
    if choice == "magnitude":
        return masks.magnitudes(weight, allowed)
    seed = int(os.environ.get("PL_GLOBAL_SEED", "0")) * 100_003 + i
    return masks.random_scores(weight.numel(), seed).to(weight.device) * allowed
