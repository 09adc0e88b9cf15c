"""Seconds of one piece of work beside another's, measured in turns."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from evaluation.stats import ratios
from evaluation.stats.estimate import Estimate
from lightning_modules.pruning import energy
from lightning_modules.pruning.turns import in_turns

Work = Callable[[], object]


def seconds(work: Work, device: torch.device, clock: Callable[[], float]) -> float:
    """How long one call takes, what it started on a GPU included."""
    _finish(device)
    start = clock()
    work()
    _finish(device)
    return clock() - start


def alternating(
    one: Work, other: Work, pairs: int, device: torch.device | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:  # fmt: skip
    """Seconds of both in turns, after one unmeasured call of each."""
    device = device or torch.device("cpu")
    seconds(one, device, clock), seconds(other, device, clock)
    return in_turns(one, other, lambda work: seconds(work, device, clock), pairs)


def latency(one: nn.Module, other: nn.Module, image: Tensor, pairs: int) -> Estimate:
    """Time of the first network over that of the second, on the same batch, by the clock."""
    with torch.inference_mode():
        both = alternating(lambda: one(image), lambda: other(image), pairs, image.device)
    return ratios.paired(both)


def energy_ratio(
    one: nn.Module, other: nn.Module, image: Tensor,
    pairs: int = energy.PAIRS, window: float = energy.SECONDS, powercap: Path = energy.POWERCAP,
) -> tuple[Estimate, list[tuple[float, float]]]:  # fmt: skip
    """Joules an image of the first network over those of the second, and the joules themselves."""
    try:
        meter = energy.counter(image.device, powercap)
    except energy.Unmeasured as error:
        return ratios.unmeasured(str(error)), []
    with torch.inference_mode():
        works = [_images(net, image) for net in (one, other)]
        joules = energy.ratios(works[0], works[1], meter, pairs, window)
    found = ratios.paired(joules)
    return replace(found, method=f"{found.method}; {meter.name}"), joules


def _images(net: nn.Module, image: Tensor) -> Callable[[], int]:
    def work() -> int:
        net(image)
        _finish(image.device)
        return len(image)

    return work


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
