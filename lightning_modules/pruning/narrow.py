"""Which channels a network keeps, to be so small or so fast; and it beside the dense one."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.stats import ratios
from evaluation.stats.estimate import Estimate
from lightning_modules.pruning import groups as dependencies
from lightning_modules.pruning import importance, search
from lightning_modules.pruning import latency as timing
from lightning_modules.pruning.search import Candidate
from lightning_modules.pruning.structure import Kept

BATCHES = (1, 8)
CPU = torch.device("cpu")
ENERGY = "energy: not asked for (--energy)"


@dataclass(frozen=True)
class Wanted:
    """How small or how fast, and how that is measured; the words of `consilium prune`.

    Args:
        macs: share of the multiply-accumulates that may be left.
        latency: share of the time of one image; one of the two, or both.
        power: how much what a channel costs counts against what hangs on it.
        round_to: channels are multiples of it.
        pairs: timed passes of both networks in turns.
        energy: whether joules are counted as well.
        device: where.
    """

    macs: float | None = None
    latency: float | None = None
    power: float = 0.5
    round_to: int = 16
    pairs: int = 20
    energy: bool = False
    device: torch.device = CPU


def by_macs(found: list[Candidate], share: float, round_to: int) -> Candidate:
    """The largest choice within the share of multiply-accumulates."""
    for one in found:
        if one.macs <= share:
            return one
    raise ValueError(
        f"--macs: {share} is out of reach, {found[-1].macs:.3f} of the multiply-accumulates "
        f"are left at least with channels rounded to {round_to}"
    )


def by_time(
    found: list[Candidate], share: float, round_to: int, took: Callable[[Candidate], float]
) -> Candidate:
    """The largest choice within the share of time that `took` measures, by bisection."""
    low, high, best = 0, len(found) - 1, None
    while low <= high:
        middle = (low + high) // 2
        time = took(found[middle])
        print(f"{found[middle].macs:.3f} of the multiply-accumulates: {time:.3f} of the time")
        if time <= share:
            best, high = found[middle], middle - 1
        else:
            low = middle + 1
    if best is None:
        raise ValueError(f"--latency: {share} is out of reach with channels rounded to {round_to}")
    return best


def choose(
    net: nn.Module, image: Tensor, name: str, wanted: Wanted, losses: Iterable[Tensor]
) -> Kept:
    """Which channels stay, those that `losses`, of some pictures each, hang on.

    What cannot lose any without computing otherwise is refused.
    """
    price = dependencies.costs(net, image)
    together = list(dependencies.groups(net, image[:1], price))
    writing = importance.WRITING if wanted.latency else 0
    groups = importance.weighed(net, together, price, losses, wanted.power, writing)
    found = search.candidates(groups, price, wanted.round_to)
    if not found:
        raise ValueError(
            f"{name} cannot be pruned by channels: none can go alone (norms over channels, "
            "attention beside convolutions, grouped or split layers), or all are fewer than "
            f"--round_to {wanted.round_to}"
        )

    def structure(one: Candidate) -> Kept:
        return search.kept(groups, one.staying, price)

    def took(one: Candidate) -> float:
        small = search.narrowed(net, structure(one))
        return timed(net, small, image[:1], wanted).value or 1.0

    best = by_macs(found, wanted.macs, wanted.round_to) if wanted.macs else found[0]
    if wanted.latency:
        left = [one for one in found if one.macs <= best.macs]
        best = by_time(left, wanted.latency, wanted.round_to, took)
    kept = structure(best)
    if not search.computes_the_same(net, kept, image):
        raise ValueError(f"{name} cannot be pruned by channels: what is left would not compute "
                         "what it computed before")  # fmt: skip
    return kept


def timed(net: nn.Module, small: nn.Module, image: Tensor, wanted: Wanted) -> Estimate:
    """Time of the narrower network over that of the dense one."""
    one, other = (each.to(wanted.device).eval() for each in (small, net))
    found = timing.latency(one, other, image.to(wanted.device), wanted.pairs)
    small.cpu(), net.cpu()
    return found


def account(
    net: nn.Module, small: nn.Module, image: Tensor, kept: Kept, wanted: Wanted
) -> dict[str, Any]:
    """pruning.json: what went, and what was measured beside the dense network."""
    before, after = (dependencies.costs(each, image) for each in (net, small))
    latency = {str(n): timed(net, small, image[:1].expand(n, -1, -1, -1), wanted) for n in BATCHES}
    energy, joules = _energy(net, small, image[:1].expand(BATCHES[-1], -1, -1, -1), wanted)
    sizes = [sum(p.numel() for p in each.parameters()) for each in (small, net)]
    layers = [
        {"name": name, "in": before[name].into, "in_left": after[name].into,
         "out": before[name].out, "out_left": after[name].out}
        for name, cost in before.items() if name in kept and cost.macs
    ]  # fmt: skip
    return {
        "weights_zero_fraction": 0.0,
        "macs_theoretical_ratio": sum(c.macs for c in after.values())
        / sum(c.macs for c in before.values()),
        "latency_ratio_measured": latency["1"].value,
        "energy_ratio_measured": energy.value,
        "parameters": sizes[0],
        "parameters_dense": sizes[1],
        "round_to": wanted.round_to,
        "latency": {n: asdict(figure) for n, figure in latency.items()},
        "energy": asdict(energy),
        "joules_per_1000_images": [[1000 * j for j in pair] for pair in joules],
        "machine": machine(wanted.device),
        "layers": layers,
    }


def machine(device: torch.device) -> str:
    """Where it was measured."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"threads on the processor: {torch.get_num_threads()}, torch {torch.__version__}"


def _energy(
    net: nn.Module, small: nn.Module, image: Tensor, wanted: Wanted
) -> tuple[Estimate, list[tuple[float, float]]]:
    if not wanted.energy:
        return ratios.unmeasured(ENERGY), []
    device = wanted.device
    return timing.energy_ratio(small.to(device), net.to(device), image.to(device))
