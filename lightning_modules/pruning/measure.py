"""Latency and energy of two networks, measured in turns by the clock and by hardware counters."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from evaluation.stats.estimate import Estimate, ratio_estimate, unmeasured_ratio

POWERCAP = Path("/sys/class/powercap")
ENERGY_PAIRS = 4
WINDOW_SECONDS = 30.0  # a shorter window also counts the heat of what ran before it
CPU = torch.device("cpu")

Work = Callable[[], object]
Subject = TypeVar("Subject")
Measurement = TypeVar("Measurement")


class EnergyUnavailableError(ValueError):
    """Energy cannot be measured on this machine; the message gives the reason."""


@dataclass(frozen=True)
class EnergyMeter:
    """A counter of energy: `read` returns counts, each of which restarts at 0 at its range."""

    name: str
    read: Callable[[], list[int]]
    ranges: list[int]
    counts_per_joule: float

    def joules(self, before: list[int], after: list[int]) -> float:
        """Energy between two readings, between which each count restarted at most once."""
        readings = zip(before, after, self.ranges, strict=True)
        return sum((end - start) % size for start, end, size in readings) / self.counts_per_joule


def rapl_meter(powercap: Path) -> EnergyMeter:
    """Meter of all processor packages in `powercap` (Intel RAPL), other processes included."""
    names = powercap.glob("intel-rapl:*/name")
    psys = {name.parent for name in names if name.read_text().strip() == "psys"}
    zones = sorted(powercap.glob("intel-rapl:*"))  # parts of packages have a second colon
    packages = [zone for zone in zones if zone.name.count(":") == 1 and zone not in psys]
    if not packages:
        raise EnergyUnavailableError(f"energy: {powercap} has no RAPL packages (intel-rapl:N)")

    def read_counts() -> list[int]:
        return [_read_int(package / "energy_uj") for package in packages]

    ranges = [_read_int(package / "max_energy_range_uj") + 1 for package in packages]
    read_counts()  # an error if it is not readable
    return EnergyMeter("RAPL (whole processor packages)", read_counts, ranges, 1e6)


def nvml_meter(index: int) -> EnergyMeter:
    """Meter of one NVIDIA GPU of 2017 (Volta) or later; needs nvidia-ml-py."""
    try:
        import pynvml
    except ImportError:
        raise EnergyUnavailableError("energy: NVML needs the package nvidia-ml-py") from None

    def read_counts() -> list[int]:
        return [int(pynvml.nvmlDeviceGetTotalEnergyConsumption(device))]

    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(index)
        read_counts()
    except pynvml.NVMLError as error:
        reason = f"energy: NVML has no energy counter for this GPU ({error})"
        raise EnergyUnavailableError(reason) from None
    return EnergyMeter("NVML total energy counter", read_counts, [2**64], 1e3)


def measure_in_turns(
    first: Subject, second: Subject, measure: Callable[[Subject], Measurement], pairs: int
) -> list[tuple[Measurement, Measurement]]:
    """Measures both `pairs` times, in turns which first (drift); returns (first, second) pairs."""
    measured = []
    for i in range(pairs):
        order = (first, second) if i % 2 == 0 else (second, first)
        one, other = map(measure, order)
        measured.append((one, other) if i % 2 == 0 else (other, one))
    return measured


def time_in_turns(
    first: Work, second: Work, pairs: int, device: torch.device = CPU
) -> list[tuple[float, float]]:
    """Pairs of seconds that calls of `first` and `second` take; a warm-up pair is left out."""

    def seconds(work: Work) -> float:
        _synchronize(device)
        start = time.perf_counter()
        work()
        _synchronize(device)  # kernels that it launched on a GPU
        return time.perf_counter() - start

    return measure_in_turns(first, second, seconds, pairs + 1)[1:]


def latency_ratio(
    first: nn.Module, second: nn.Module, image: Tensor, pairs: int, device: torch.device
) -> Estimate:
    """Wall-clock time of the first network over that of the second, on the same batch."""
    first, second, image = first.to(device).eval(), second.to(device).eval(), image.to(device)
    with torch.inference_mode():
        seconds = time_in_turns(lambda: first(image), lambda: second(image), pairs, device)
    first.cpu(), second.cpu()
    return ratio_estimate(seconds)


def joules_per_image(net: nn.Module, image: Tensor, meter: EnergyMeter) -> float:
    """Joules per image of a network that runs on the same batch for `WINDOW_SECONDS`."""
    before, start, num_images = meter.read(), time.monotonic(), 0
    while time.monotonic() - start < WINDOW_SECONDS:
        net(image)
        _synchronize(image.device)
        num_images += len(image)
    return meter.joules(before, meter.read()) / num_images


def energy_ratio(
    first: nn.Module, second: nn.Module, image: Tensor
) -> tuple[Estimate, list[tuple[float, float]]]:
    """Energy per image of the first over the second network, and the joules of each pair.

    The ratio has no value if there is no readable counter of energy.
    """
    try:
        is_gpu = image.device.type == "cuda"
        meter = nvml_meter(image.device.index or 0) if is_gpu else rapl_meter(POWERCAP)
    except EnergyUnavailableError as error:
        return unmeasured_ratio(str(error)), []

    measure = partial(joules_per_image, image=image, meter=meter)
    with torch.inference_mode():
        measured = measure_in_turns(first, second, measure, ENERGY_PAIRS)
    estimate = ratio_estimate(measured)
    return replace(estimate, method=f"{estimate.method}; {meter.name}"), measured


def describe_device(device: torch.device) -> str:
    """The machine of a measurement: GPU or number of CPU threads, and the version of torch."""
    threads = f"{torch.get_num_threads()} CPU threads"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else threads
    return f"{name}, torch {torch.__version__}"


def _synchronize(device: torch.device) -> None:
    """Waits until a GPU has done its work; does nothing for a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _read_int(file: Path) -> int:
    """The number in a file; EnergyUnavailableError if it cannot be read."""
    try:
        return int(file.read_text())
    except PermissionError:
        raise EnergyUnavailableError(f"energy: no permission to read {file}") from None
    except (OSError, ValueError) as error:
        raise EnergyUnavailableError(f"energy: {file} cannot be read ({error})") from None
