"""Channel pruning of a trained network to a target size or latency, and what it saves."""

import io
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evaluation.files import write_bytes
from evaluation.stats.estimate import Estimate, unmeasured_ratio
from lightning_modules import checkpoints
from lightning_modules.model_info import count_parameters
from lightning_modules.pruning import measure, search
from lightning_modules.pruning.groups import find_groups, layer_costs, total_macs
from lightning_modules.pruning.search import Candidate
from lightning_modules.pruning.structure import (
    Structure,
    compose_structures,
    outputs_match,
    pruned_copy,
)

BATCH_SIZES = (1, 8)  # whose latency is measured
NO_ENERGY = "energy: not requested (--energy)"


@dataclass(frozen=True)
class PruningTarget:
    """How small or how fast the pruned network must be, and how that is measured.

    Args:
        macs: largest fraction of the multiply-accumulates that may remain.
        latency: largest fraction of the latency of one image that may remain.
        cost_power: how much the cost of a channel counts against its importance; 0 not at all.
        round_to: widths are multiples of it.
        pairs: number of timed passes of each network.
        energy: whether to measure energy as well.
        device: where latency and energy are measured.
    """

    macs: float | None = None
    latency: float | None = None
    cost_power: float = 0.5
    round_to: int = 16
    pairs: int = 20
    energy: bool = False
    device: torch.device = measure.CPU


def choose_structure(
    net: nn.Module, image: Tensor, name: str, target: PruningTarget, losses: Iterable[Tensor]
) -> Structure:
    """The largest structure within `target`; `losses` decide on the importance of channels.

    A network whose channels cannot be removed without changing what it computes is an error.
    """
    costs = layer_costs(net, image)
    write_cost = search.WRITE_COST if target.latency else 0
    channels = list(find_groups(net, image[:1], costs))
    groups = search.score_groups(net, channels, costs, losses, target.cost_power, write_cost)
    candidates = search.find_candidates(groups, costs, target.round_to)
    if not candidates:
        raise ValueError(
            f"{name}: no channels can be pruned: each is tied to a norm over channels, attention "
            "next to convolutions, or a grouped or split layer, or the layers are narrower than "
            f"round_to {target.round_to}"
        )

    def structure_of(candidate: Candidate) -> Structure:
        return search.to_structure(groups, candidate.masks, costs)

    def latency_of(candidate: Candidate) -> float:
        pruned = pruned_copy(net, structure_of(candidate))
        return measure_latency(net, pruned, image[:1], target).value or 1.0

    best = candidates[0]
    if target.macs:
        best = largest_within_macs(candidates, target.macs, target.round_to)
    if target.latency:
        smaller = [c for c in candidates if c.macs_ratio <= best.macs_ratio]
        best = largest_within_latency(smaller, target.latency, target.round_to, latency_of)
    structure = structure_of(best)
    if not outputs_match(net, structure, image):
        raise ValueError(f"{name}: channels cannot be pruned: the outputs without them differ from "
                         "the outputs with these channels set to 0")  # fmt: skip
    return structure


def largest_within_macs(candidates: list[Candidate], limit: float, round_to: int) -> Candidate:
    """The first of `candidates` (from large to small) within the fraction `limit` of the MACs."""
    for candidate in candidates:
        if candidate.macs_ratio <= limit:
            return candidate
    raise ValueError(
        f"macs: {limit} cannot be reached: at least {candidates[-1].macs_ratio:.3f} of the "
        f"multiply-accumulates remain with round_to {round_to}"
    )


def largest_within_latency(
    candidates: list[Candidate],
    limit: float,
    round_to: int,
    latency_of: Callable[[Candidate], float],
) -> Candidate:
    """The largest of `candidates` within the fraction `limit` of the latency, by bisection."""
    low, high, best = 0, len(candidates) - 1, None
    while low <= high:
        middle = (low + high) // 2
        candidate = candidates[middle]
        latency = latency_of(candidate)
        print(f"{candidate.macs_ratio:.3f} of the multiply-accumulates: {latency:.3f} of the time")
        if latency <= limit:
            best, high = candidate, middle - 1
        else:
            low = middle + 1
    if best is None:
        raise ValueError(f"latency: {limit} cannot be reached with round_to {round_to}")
    return best


def measure_latency(
    net: nn.Module, pruned: nn.Module, image: Tensor, target: PruningTarget
) -> Estimate:
    """Latency of the pruned network over that of the dense one, on the target's device."""
    first, second = (model.to(target.device).eval() for model in (pruned, net))
    ratio = measure.latency_ratio(first, second, image.to(target.device), target.pairs)
    pruned.cpu(), net.cpu()
    return ratio


def measure_pruned(
    net: nn.Module, pruned: nn.Module, image: Tensor, structure: Structure, target: PruningTarget
) -> dict[str, Any]:
    """The content of pruning.json: pruned channels, and size, latency and energy over the dense."""
    batches = {str(n): image[:1].expand(n, -1, -1, -1) for n in BATCH_SIZES}
    latency = {n: measure_latency(net, pruned, batch, target) for n, batch in batches.items()}
    energy, joules = _measure_energy(net, pruned, batches[str(BATCH_SIZES[-1])], target)
    before, after = (layer_costs(model, image) for model in (net, pruned))
    layers = [
        {"name": name, "in": cost.in_channels, "in_left": after[name].in_channels,
         "out": cost.out_channels, "out_left": after[name].out_channels}
        for name, cost in before.items() if name in structure and cost.macs
    ]  # fmt: skip
    return {
        "weights_zero_fraction": 0.0,
        "macs_theoretical_ratio": total_macs(pruned, image) / total_macs(net, image),
        "latency_ratio_measured": latency["1"].value,
        "energy_ratio_measured": energy.value,
        "parameters": count_parameters(pruned),
        "parameters_dense": count_parameters(net),
        "round_to": target.round_to,
        "latency": {n: asdict(estimate) for n, estimate in latency.items()},
        "energy": asdict(energy),
        "joules_per_1000_images": [[1000 * j for j in pair] for pair in joules],
        "machine": measure.describe_device(target.device),
        "layers": layers,
    }


def save_pruned(
    file: Path, block: checkpoints.Block, pruned: nn.Module, structure: Structure
) -> None:
    """Writes a checkpoint of the pruned network; `block` is that of the network before pruning."""
    state = {f"net.{name}": tensor.cpu() for name, tensor in pruned.state_dict().items()}
    structure = compose_structures(block.structure, structure)
    block = replace(block, structure=structure, metrics={}, measured_weights="")
    stream = io.BytesIO()
    torch.save(checkpoints.inference_checkpoint(block, state), stream)
    write_bytes(file, stream.getvalue())


def _measure_energy(
    net: nn.Module, pruned: nn.Module, image: Tensor, target: PruningTarget
) -> tuple[Estimate, list[tuple[float, float]]]:
    if not target.energy:
        return unmeasured_ratio(NO_ENERGY), []
    device = target.device
    return measure.energy_ratio(pruned.to(device), net.to(device), image.to(device))
