"""Which weights are pruned, and how many: pure functions of shapes, scores and counts."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_modules.freezing import require

INFINITY_BITS = 0x7F800000  # bit pattern of float32 infinity; those of NaN are larger
MIN_DENSITY = 0.05  # of a layer in the `global` distribution


@dataclass(frozen=True)
class PrunableWeight:
    """Name and shape of a weight tensor, and how many times an image uses each of its values."""

    name: str
    shape: tuple[int, ...]
    positions: int

    @property
    def size(self) -> int:
        """Number of values."""
        return int(np.prod(self.shape))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense weight for one image."""
        return self.size * self.positions


def nonzeros_per_weight(
    weights: Sequence[PrunableWeight], density: float, distribution: str
) -> list[int]:
    """Number of values that remain in each weight.

    `uniform` and `erk` sum to the rounded `density` of all values; `erk` (Erdos-Renyi kernel) gives
    values in proportion to the sum of a weight's dimensions. `macs` does the same within `density`
    of the multiply-accumulates. For `global` these are minimums; magnitudes decide on the others.
    """
    sizes = [weight.size for weight in weights]
    if distribution == "global":
        return [int(min(MIN_DENSITY, density) * size) for size in sizes]
    total = round(density * sum(sizes))
    if distribution == "uniform":
        return _round_to_total([density * size for size in sizes], sizes, total)
    proportions = [sum(weight.shape) for weight in weights]
    if distribution == "erk":
        counts = _allocate(sizes, proportions, [1] * len(sizes), total)
        return _round_to_total(counts, sizes, total)
    costs = [weight.positions for weight in weights]
    budget = density * sum(weight.macs for weight in weights)
    return [int(count) for count in _allocate(sizes, proportions, costs, budget)]


def interpolate_nonzeros(final: Sequence[int], sizes: Sequence[int], remaining: float) -> list[int]:
    """Counts `final + ceil((size - final) * remaining)`, one per weight; `remaining` 1 is dense."""
    ends = zip(final, sizes, strict=True)
    return [end + int(np.ceil((size - end) * remaining)) for end, size in ends]


def magnitude_scores(tensor: Tensor, mask: Tensor | None = None) -> Tensor:
    """Scores for `top_k` (flat int32) in the order of absolute values; 0 outside of `mask`.

    The bit patterns of non-negative floats are ordered like the floats, so nothing is rounded.
    """
    if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"weights of type {tensor.dtype} are not float32, float16 or bfloat16")
    bits = tensor.detach().reshape(-1).float().abs().view(torch.int32)
    if bits.numel() and int(bits.max()) >= INFINITY_BITS:
        raise ValueError("weights contain NaN or infinity: their magnitudes have no order")
    return bits + 1 if mask is None else (bits + 1) * mask.reshape(-1)


def random_scores(size: int, seed: int) -> Tensor:
    """Random scores for `top_k` (flat int32), as a baseline for other criteria."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, INFINITY_BITS, (size,), generator=generator, dtype=torch.int32)


def top_k(scores: Tensor, k: int) -> Tensor:
    """Mask of the `k` largest of non-negative flat int32 scores, the first ones among ties."""
    require("k", k, 0 <= k <= scores.numel(), f"in 0..{scores.numel()}")
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    threshold = int(scores.cpu().kthvalue(scores.numel() - k + 1).values)
    above, ties = scores > threshold, scores == threshold
    return above | (ties & (ties.cumsum(0) <= k - int(above.sum())))


def top_k_global(scores: Sequence[Tensor], k: int, minimums: Sequence[int]) -> list[Tensor]:
    """Masks of the `k` largest scores of all weights, at least the minimum in each weight."""
    largest = torch.iinfo(torch.int32).max
    pairs = zip(scores, minimums, strict=True)
    protected = [score.masked_fill(top_k(score, minimum), largest) for score, minimum in pairs]
    mask = top_k(torch.cat(protected), k)
    return list(torch.split(mask, [score.numel() for score in scores]))


def drop_and_grow(scores: Tensor, gradient_scores: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """`mask` without its lowest-scored `fraction`, and with as many others of largest gradients."""
    count = int(mask.sum())
    exchanged = min(int(fraction * count), mask.numel() - count)
    remaining = top_k(scores * mask, count - exchanged)
    return remaining | top_k(gradient_scores * ~mask, exchanged)


def pack_mask(mask: Tensor) -> Tensor:
    """A mask as a uint8 tensor, eight entries per byte, the first in the highest bit."""
    return torch.from_numpy(np.packbits(mask.reshape(-1).cpu().numpy()))


def unpack_mask(packed: Tensor, size: int) -> Tensor:
    """The flat mask of `size` entries that `pack_mask` packed."""
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=size)).bool()


def masks_digest(weights: Sequence[PrunableWeight], packed: Sequence[Tensor]) -> str:
    """SHA-256 over the names, shapes and bits of all masks."""
    digest = hashlib.sha256()
    for weight, bits in zip(weights, packed, strict=True):
        digest.update(f"{weight.name} {weight.shape} ".encode())
        digest.update(bits.cpu().numpy().tobytes())
    return digest.hexdigest()


def _allocate(
    sizes: Sequence[int], proportions: Sequence[int], costs: Sequence[int], budget: float
) -> list[float]:
    """Counts in proportion to `proportions`, none above its size; sum(count * cost) is `budget`."""
    full: set[int] = set()
    while True:
        left = budget - sum(sizes[i] * costs[i] for i in full)
        others = [i for i in range(len(sizes)) if i not in full]
        scale = left / max(1, sum(proportions[i] * costs[i] for i in others))
        exceeded = {i for i in others if scale * proportions[i] > sizes[i]}
        if not exceeded:
            return [sizes[i] if i in full else scale * proportions[i] for i in range(len(sizes))]
        full |= exceeded


def _round_to_total(counts: Sequence[float], sizes: Sequence[int], total: int) -> list[int]:
    """Counts as integers that sum to `total`; those with the largest fractions are rounded up."""
    rounded = [min(int(count), size) for count, size in zip(counts, sizes, strict=True)]
    order = sorted(range(len(counts)), key=lambda i: (rounded[i] - counts[i], i))
    for i in [i for i in order if rounded[i] < sizes[i]][: total - sum(rounded)]:
        rounded[i] += 1
    return rounded
