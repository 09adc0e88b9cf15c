"""Which weights stay and how many: pure functions of shapes, scores and counts."""

import hashlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

Split = Literal["uniform", "erk", "global", "macs"]
BINS = 1 << 16
CHUNK = 1 << 24  # elements counted at a time: bounds the memory of a histogram
INFINITY = 0x7F800000  # the bit pattern of float32 infinity; above it are the NaNs
FLOOR = 0.05  # the share of a layer that a global choice always leaves


@dataclass(frozen=True)
class Layer:
    """One weight that may be pruned; `positions` is how often an image uses each of its numbers."""

    name: str
    shape: tuple[int, ...]
    positions: int

    @property
    def size(self) -> int:
        """How many numbers the weight has."""
        return int(np.prod(self.shape))

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the dense layer for one image."""
        return self.size * self.positions


def total(layers: Sequence[Layer], density: float) -> int:
    """How many numbers stay in all: `density` of them, rounded to the nearest."""
    return round(density * sum(layer.size for layer in layers))


def counts(layers: Sequence[Layer], density: float, split: Split) -> list[int]:
    """How many numbers stay in each layer.

    `uniform` and `erk` sum to `total` exactly. `erk` gives small and narrow layers more, in
    proportion to the sum of their dimensions. `macs` does so too but spends `density` of the
    multiply-accumulates: never more, and short of it by less than one number a layer. For
    `global` these are the least that each layer keeps; the weights themselves decide the rest.
    """
    sizes = [layer.size for layer in layers]
    if split == "global":
        return [int(min(FLOOR, density) * size) for size in sizes]
    if split == "uniform":
        return _rounded([density * size for size in sizes], sizes, total(layers, density))
    wanted = [sum(layer.shape) for layer in layers]
    if split == "erk":
        shares = _filled(sizes, wanted, [1] * len(sizes), total(layers, density))
        return _rounded(shares, sizes, total(layers, density))
    costs = [layer.positions for layer in layers]
    budget = density * sum(layer.macs for layer in layers)
    return [int(share) for share in _filled(sizes, wanted, costs, budget)]


def on_the_way(final: Sequence[int], sizes: Sequence[int], left: float) -> list[int]:
    """Counts of a ramp on which the share `left` (1 to 0) of the pruning is still to come.

    They never rise while `left` falls, and are `final` when it is 0.
    """
    return [
        last + int(np.ceil((size - last) * left)) for last, size in zip(final, sizes, strict=True)
    ]


def magnitudes(weight: Tensor, allowed: Tensor | None = None) -> Tensor:
    """Scores of `top_k` (flat int32, ordered as the absolute values); 0 where not `allowed`.

    The bit patterns of non-negative floats are ordered like the floats, so nothing is rounded.
    """
    if weight.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"weights of type {weight.dtype} are not float32, float16 or bfloat16")
    bits = weight.detach().reshape(-1).float().abs().view(torch.int32)
    if bits.numel() and int(bits.max()) >= INFINITY:
        raise ValueError("weights hold NaN or infinity: which of them are large is undefined")
    return bits + 1 if allowed is None else (bits + 1) * allowed.reshape(-1)


def random_scores(size: int, seed: int) -> Tensor:
    """Scores of `top_k` that no weight has a say in: the control of every choice."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, INFINITY, (size,), generator=generator, dtype=torch.int32)


def top_k(scores: Tensor, k: int) -> Tensor:
    """True at the `k` largest of non-negative flat int32 scores; of equal ones the first stay."""
    if not 0 <= k <= scores.numel():
        raise ValueError(f"k: {k} is not in 0..{scores.numel()}")
    if k == 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    high, above = _bin_of(_histogram(scores, 16), k)
    inside = scores[(scores >> 16) == high]
    low, above_inside = _bin_of(_histogram(inside, 0), k - above)
    threshold = (high << 16) | low
    ties = _first(scores == threshold, k - above - above_inside)
    return ties.logical_or_(scores > threshold)


def shrunk(scores: Sequence[Tensor], keep: Sequence[int]) -> list[Tensor]:
    """The masks that keep so many numbers in each layer."""
    return [top_k(score, k) for score, k in zip(scores, keep, strict=True)]


def shrunk_globally(scores: Sequence[Tensor], k: int, floors: Sequence[int]) -> list[Tensor]:
    """The masks that keep `k` numbers in all, in each layer at least its floor."""
    safe = [
        torch.where(top_k(score, floor), torch.iinfo(torch.int32).max, score)
        for score, floor in zip(scores, floors, strict=True)
    ]
    ends = list(itertools.accumulate((score.numel() for score in scores), initial=0))
    kept = top_k(torch.cat(safe), k)
    return [kept[start:end] for start, end in itertools.pairwise(ends)]


def swapped(scores: Tensor, growth: Tensor, mask: Tensor, share: float) -> Tensor:
    """As many kept as in `mask`, a `share` of them exchanged: the smallest for fastest growing."""
    kept = int(mask.sum())
    swap = min(int(share * kept), mask.numel() - kept)
    return top_k(scores * mask, kept - swap) | top_k(growth * ~mask, swap)


def pack(mask: Tensor) -> Tensor:
    """Eight entries a byte, the first in the highest bit."""
    return torch.from_numpy(np.packbits(mask.reshape(-1).cpu().numpy()))


def unpack(packed: Tensor, size: int) -> Tensor:
    """The flat mask of `size` entries that `pack` took."""
    return torch.from_numpy(np.unpackbits(packed.cpu().numpy(), count=size)).bool()


def digest(layers: Sequence[Layer], packed: Sequence[Tensor]) -> str:
    """SHA-256 over the names, shapes and bits of all masks."""
    found = hashlib.sha256()
    for layer, bits in zip(layers, packed, strict=True):
        found.update(f"{layer.name} {layer.shape} ".encode())
        found.update(bits.cpu().numpy().tobytes())
    return found.hexdigest()


def _histogram(scores: Tensor, shift: int) -> Tensor:
    """How many scores have each value of 16 of their bits."""
    found = torch.zeros(BINS, dtype=torch.int64)
    for part in _parts(scores):
        found += torch.bincount((part >> shift) & (BINS - 1), minlength=BINS).cpu()
    return found


def _parts(flat: Tensor) -> Iterator[Tensor]:
    """Views of `flat`, one after the other."""
    return (flat[start : start + CHUNK] for start in range(0, flat.numel(), CHUNK))


def _bin_of(histogram: Tensor, k: int) -> tuple[int, int]:
    """The bin that holds the k-th largest, and how many lie above it."""
    at_least = histogram.flip(0).cumsum(0).flip(0)
    found = int((at_least >= k).sum()) - 1
    return found, int(at_least[found] - histogram[found])


def _first(mask: Tensor, k: int) -> Tensor:
    """The first `k` True entries of `mask`, which is changed."""
    for part in _parts(mask):
        found = int(part.sum())
        if found > k:
            part[part.nonzero().flatten()[k:]] = False
        k -= min(found, k)
    return mask


def _filled(
    sizes: Sequence[int], wanted: Sequence[int], costs: Sequence[int], budget: float
) -> list[float]:
    """Shares in proportion to `wanted`, none above its size, that cost `budget` together."""
    full: set[int] = set()
    while True:
        left = budget - sum(sizes[i] * costs[i] for i in full)
        rest = [i for i in range(len(sizes)) if i not in full]
        scale = left / max(1, sum(wanted[i] * costs[i] for i in rest))
        over = {i for i in rest if scale * wanted[i] > sizes[i]}
        if not over:
            return [sizes[i] if i in full else scale * wanted[i] for i in range(len(sizes))]
        full |= over


def _rounded(shares: Sequence[float], sizes: Sequence[int], exact: int) -> list[int]:
    """Whole shares that sum to `exact`: the largest remainders are rounded up, ties in order."""
    whole = [min(int(share), size) for share, size in zip(shares, sizes, strict=True)]
    order = sorted(range(len(shares)), key=lambda i: (whole[i] - shares[i], i))
    for i in [i for i in order if whole[i] < sizes[i]][: exact - sum(whole)]:
        whole[i] += 1
    return whole
