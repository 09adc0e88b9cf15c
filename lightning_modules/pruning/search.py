"""Which channels of a network can only go together, and which of them go."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from lightning_modules.pruning.structure import Kept, narrow, silenced

SIDES = ("out", "in")
LEAST = 0.1  # share of a group's channels that always stays
SHARES = [i / 100 for i in range(1, 100)]  # of the channels that go, which are tried


@dataclass(frozen=True)
class Cut:
    """Where the channels of a group lie in one layer: each one's positions on that side."""

    layer: str
    side: str
    positions: list[list[int]]


@dataclass(frozen=True)
class Group:
    """Channels that each go through several layers, and leave all of them.

    Args:
        cuts: the layers that they go through.
        scores: (n,) how much each channel matters, as far as that is known.
    """

    cuts: list[Cut]
    scores: Tensor


@dataclass(frozen=True)
class Cost:
    """A layer's multiply-accumulates and places for one image, and its width on both sides."""

    macs: int
    positions: int
    out: int
    into: int

    def width(self, side: str) -> int:
        """Channels on a side."""
        return self.out if side == "out" else self.into


@dataclass(frozen=True)
class Candidate:
    """One choice of channels, and the share of the multiply-accumulates that it leaves."""

    macs: float
    staying: list[Tensor]


def stay(found: Sequence[Group], share: float, round_to: int) -> list[Tensor]:
    """Which channels stay, (n,) booleans a group, when about `share` of all go.

    The least go, wherever they are. What then stays of a group is rounded to the nearest multiple
    of `round_to` (or to all of them), and a tenth always does.
    """
    scores = torch.cat([group.scores for group in found])
    limit = scores.sort().values[int(share * len(scores))]
    left = [int((group.scores >= limit).sum()) for group in found]
    counts = [rounded(k, len(g.scores), round_to) for k, g in zip(left, found, strict=True)]
    return [_largest(group.scores, k) for k, group in zip(counts, found, strict=True)]


def rounded(left: int, width: int, round_to: int) -> int:
    """The multiple of `round_to` below `width`, or `width`, that is nearest to `left`."""
    least = max(round_to, LEAST * width)
    allowed = [k for k in range(round_to, width, round_to) if k >= least] + [width]
    return min(allowed, key=lambda k: (abs(k - left), -k))


def kept(found: Sequence[Group], staying: Sequence[Tensor], price: dict[str, Cost]) -> Kept:
    """What `narrow` needs to know; sides that lose nothing are left out."""
    gone: dict[tuple[str, str], set[int]] = {}
    for group, mask in zip(found, staying, strict=True):
        going = (~mask).nonzero().flatten().tolist()
        for cut in group.cuts if going else []:
            places = gone.setdefault((cut.layer, cut.side), set())
            places.update(place for i in going for place in cut.positions[i])
    structure: Kept = {}
    for (layer, side), lost in gone.items():
        left = [i for i in range(price[layer].width(side)) if i not in lost]
        structure.setdefault(layer, {})[side] = left
    return structure


def macs(found: Sequence[Group], staying: Sequence[Tensor], price: dict[str, Cost]) -> int:
    """Multiply-accumulates for one image of the network that is left."""
    lost: dict[tuple[str, str], int] = {}
    for group, mask in zip(found, staying, strict=True):
        many = int((~mask).sum())
        for cut in group.cuts:
            here = many * len(cut.positions[0])
            lost[cut.layer, cut.side] = lost.get((cut.layer, cut.side), 0) + here
    left = [
        cost.macs * prod(1 - lost.get((layer, side), 0) / cost.width(side) for side in SIDES)
        for layer, cost in price.items()
    ]
    return round(sum(left))


def candidates(found: Sequence[Group], price: dict[str, Cost], round_to: int) -> list[Candidate]:
    """What may stay, from the most multiply-accumulates to the fewest."""
    if not found:
        return []
    seen: dict[int, list[Tensor]] = {}
    for share in SHARES:
        staying = stay(found, share, round_to)
        seen.setdefault(macs(found, staying, price), staying)
    dense = sum(cost.macs for cost in price.values())
    return [Candidate(m / dense, seen[m]) for m in sorted(seen, reverse=True) if m < dense]


def computes_the_same(net: nn.Module, structure: Kept, image: Tensor) -> bool:
    """Whether narrowing `net` only takes away what the channels that go contribute.

    Held against the whole network with those channels set to 0, in double precision: an operation
    that mixes channels behind torch-pruning's back, or does not keep 0 at 0, shows.
    """
    whole = copy.deepcopy(net).double().eval()
    small = narrowed(whole, structure)
    silenced(whole, structure)
    with torch.no_grad():
        wanted, found = (one(image.double()) for one in (whole, small))
    if wanted.shape != found.shape:
        return False
    return bool((wanted - found).abs().max() <= 1e-6 * wanted.abs().max().clamp_min(1e-6))


def narrowed(net: nn.Module, structure: Kept) -> nn.Module:
    """A narrower copy."""
    small = copy.deepcopy(net)
    narrow(small, structure)
    return small.eval()


def _largest(scores: Tensor, k: int) -> Tensor:
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[scores.argsort(descending=True, stable=True)[:k]] = True
    return mask
