"""Which channels a network keeps, to be so small or so fast; and it beside the dense one."""

import argparse
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from commands.pruning import channels, dependencies, timing
from commands.pruning.channels import Candidate
from evaluation import ratios
from evaluation.intervals import Figure
from lightning_modules.structure import Kept

BATCHES = (1, 8)
ENERGY = "energy: not asked for (--energy)"


def by_macs(found: list[Candidate], asked: argparse.Namespace) -> Candidate:
    """The largest choice within the share of multiply-accumulates."""
    for one in found:
        if one.macs <= asked.macs:
            return one
    raise ValueError(
        f"--macs: {asked.macs} is out of reach, {found[-1].macs:.3f} of the multiply-accumulates "
        f"are left at least with channels rounded to {asked.round_to}"
    )


def by_time(
    found: list[Candidate], asked: argparse.Namespace, took: Callable[[Candidate], float]
) -> Candidate:
    """The largest choice within the share of time that `took` measures, by bisection."""
    low, high, best = 0, len(found) - 1, None
    while low <= high:
        middle = (low + high) // 2
        share = took(found[middle])
        print(f"{found[middle].macs:.3f} of the multiply-accumulates: {share:.3f} of the time")
        if share <= asked.latency:
            best, high = found[middle], middle - 1
        else:
            low = middle + 1
    if best is None:
        raise ValueError(f"--latency: {asked.latency} is out of reach with channels rounded to "
                         f"{asked.round_to}")  # fmt: skip
    return best


def choose(net: nn.Module, image: Tensor, name: str, asked: argparse.Namespace) -> Kept:
    """Which channels stay; what cannot lose any without computing otherwise is refused."""
    price = dependencies.costs(net, image)
    groups = list(dependencies.groups(net, image[:1], price))
    found = channels.candidates(groups, price, asked.round_to)
    if not found:
        raise ValueError(
            f"{name} cannot be pruned by channels: none can go alone (norms over channels, "
            "attention beside convolutions, grouped or split layers), or all are fewer than "
            f"--round_to {asked.round_to}"
        )

    def structure(one: Candidate) -> Kept:
        return channels.kept(groups, one.staying, price)

    def took(one: Candidate) -> float:
        small = channels.narrowed(net, structure(one))
        return timed(net, small, image[:1], asked).value or 1.0

    kept = structure(by_macs(found, asked) if asked.macs else by_time(found, asked, took))
    if not channels.computes_the_same(net, kept, image):
        raise ValueError(f"{name} cannot be pruned by channels: what is left would not compute "
                         "what it computed before")  # fmt: skip
    return kept


def timed(net: nn.Module, small: nn.Module, image: Tensor, asked: argparse.Namespace) -> Figure:
    """Time of the narrower network over that of the dense one."""
    device: torch.device = asked.device
    one, other = (each.to(device).eval() for each in (small, net))
    found = timing.latency(one, other, image.to(device), asked.pairs)
    small.cpu(), net.cpu()
    return found


def account(
    net: nn.Module, small: nn.Module, image: Tensor, kept: Kept, asked: argparse.Namespace
) -> dict[str, Any]:
    """pruning.json: what went, and what was measured beside the dense network."""
    before, after = (dependencies.costs(each, image) for each in (net, small))
    latency = {str(n): timed(net, small, image[:1].expand(n, -1, -1, -1), asked) for n in BATCHES}
    energy, joules = _energy(net, small, image[:1].expand(BATCHES[-1], -1, -1, -1), asked)
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
        "round_to": asked.round_to,
        "latency": {n: asdict(figure) for n, figure in latency.items()},
        "energy": asdict(energy),
        "joules_per_1000_images": [[1000 * j for j in pair] for pair in joules],
        "machine": machine(asked.device),
        "layers": layers,
    }


def machine(device: torch.device) -> str:
    """Where it was measured."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"threads on the processor: {torch.get_num_threads()}, torch {torch.__version__}"


def _energy(
    net: nn.Module, small: nn.Module, image: Tensor, asked: argparse.Namespace
) -> tuple[Figure, list[tuple[float, float]]]:
    if not asked.energy:
        return ratios.unmeasured(ENERGY), []
    device: torch.device = asked.device
    return timing.energy_ratio(small.to(device), net.to(device), image.to(device))
