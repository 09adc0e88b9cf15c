"""Latency and energy of two networks, measured in turns by the clock and by hardware counters."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from evaluation.stats.estimate import Estimate, ratio_estimate, unmeasured_ratio

POWERCAP = Path("/sys/class/powercap")
WINDOW_SECONDS = 30.0  # a shorter window also counts the heat of what ran before it
ENERGY_PAIRS = 4
CPU = torch.device("cpu")

Timed = Callable[[], object]
Counted = Callable[[], int]  # returns the number of images it processed
Subject = TypeVar("Subject")
Measurement = TypeVar("Measurement")


class EnergyUnavailableError(ValueError):
    """Energy cannot be measured on this machine; the message gives the reason."""


class EnergyMeter(Protocol):
    """A counter of joules."""

    @property
    def name(self) -> str:
        """What is counted, and by which interface."""

    def read(self) -> list[int]:
        """The current counts."""

    def joules(self, before: list[int], after: list[int]) -> float:
        """Energy between two readings."""


@dataclass(frozen=True)
class RaplMeter:
    """Whole processor packages, including the work of other processes.

    A package's counter restarts at 0 beyond its `max_energy_range_uj`, which takes minutes; it
    must be read at least once in that time.
    """

    packages: list[Path]
    ranges: list[int]
    name: str = "RAPL (whole processor packages)"

    def read(self) -> list[int]:
        """Microjoules of each package."""
        return [_read_int(package / "energy_uj") for package in self.packages]

    def joules(self, before: list[int], after: list[int]) -> float:
        """Sum over the packages, each of which restarted at most once."""
        readings = zip(before, after, self.ranges, strict=True)
        return sum((end - start) % (largest + 1) for start, end, largest in readings) / 1e6


@dataclass(frozen=True)
class NvmlMeter:
    """One NVIDIA GPU since its driver was loaded."""

    library: Any
    device: Any
    name: str = "NVML total energy counter"

    def read(self) -> list[int]:
        """Millijoules."""
        return [int(self.library.nvmlDeviceGetTotalEnergyConsumption(self.device))]

    def joules(self, before: list[int], after: list[int]) -> float:
        """The difference."""
        return (after[0] - before[0]) / 1e3


def energy_meter(device: torch.device, powercap: Path = POWERCAP) -> EnergyMeter:
    """The meter of `device`; raises EnergyUnavailableError without a readable one."""
    return nvml_meter(device.index or 0) if device.type == "cuda" else rapl_meter(powercap)


def rapl_meter(powercap: Path = POWERCAP) -> RaplMeter:
    """The packages below `powercap`, without their parts (a second colon), which they include."""
    zones = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
    packages = [zone for zone in zones if zone.name.count(":") == 1 and _zone_name(zone) != "psys"]
    if not packages:
        raise EnergyUnavailableError(f"energy: {powercap} has no RAPL packages (intel-rapl:N)")
    ranges = [_read_int(package / "max_energy_range_uj") for package in packages]
    meter = RaplMeter(packages, ranges)
    meter.read()
    return meter


def nvml_meter(index: int) -> NvmlMeter:
    """The meter of a GPU; needs nvidia-ml-py, and a GPU of 2017 (Volta) or later."""
    try:
        import pynvml
    except ImportError:
        raise EnergyUnavailableError("energy: NVML needs the package nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
        meter = NvmlMeter(pynvml, pynvml.nvmlDeviceGetHandleByIndex(index))
        meter.read()
    except pynvml.NVMLError as error:
        raise EnergyUnavailableError(
            f"energy: NVML has no energy counter for this GPU ({error})"
        ) from None
    return meter


def measure_in_turns(
    first: Subject, second: Subject, measure: Callable[[Subject], Measurement], pairs: int
) -> list[tuple[Measurement, Measurement]]:
    """Measures both `pairs` times, taking turns in going first; drift affects both alike."""
    measured = []
    for i in range(pairs):
        if i % 2 == 0:
            measured.append((measure(first), measure(second)))
        else:
            later = measure(second)
            measured.append((measure(first), later))
    return measured


def seconds_per_call(work: Timed, device: torch.device, clock: Callable[[], float]) -> float:
    """Seconds of one call, including the kernels that it launched on a GPU."""
    _synchronize(device)
    start = clock()
    work()
    _synchronize(device)
    return clock() - start


def time_in_turns(
    first: Timed, second: Timed, pairs: int, device: torch.device = CPU,
    clock: Callable[[], float] = time.perf_counter,
) -> list[tuple[float, float]]:  # fmt: skip
    """Seconds of both in turns, after one call of each that is not measured."""
    seconds_per_call(first, device, clock), seconds_per_call(second, device, clock)
    return measure_in_turns(
        first, second, lambda work: seconds_per_call(work, device, clock), pairs
    )


def latency_ratio(first: nn.Module, second: nn.Module, image: Tensor, pairs: int) -> Estimate:
    """Wall-clock time of the first network over that of the second, on the same batch."""
    with torch.inference_mode():
        seconds = time_in_turns(lambda: first(image), lambda: second(image), pairs, image.device)
    return ratio_estimate(seconds)


def joules_per_image(
    work: Counted, meter: EnergyMeter, seconds: float = WINDOW_SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> float:  # fmt: skip
    """Joules per image of `work`, repeated for `seconds`."""
    before, start, images = meter.read(), clock(), 0
    while clock() - start < seconds:
        images += work()
    return meter.joules(before, meter.read()) / images


def energy_ratio(
    first: nn.Module, second: nn.Module, image: Tensor,
    pairs: int = ENERGY_PAIRS, window: float = WINDOW_SECONDS, powercap: Path = POWERCAP,
) -> tuple[Estimate, list[tuple[float, float]]]:  # fmt: skip
    """Energy per image of the first network over that of the second, and the joules of each pair.

    Without a readable counter the estimate is null with the reason.
    """
    try:
        meter = energy_meter(image.device, powercap)
    except EnergyUnavailableError as error:
        return unmeasured_ratio(str(error)), []
    with torch.inference_mode():
        joules = measure_in_turns(
            _count_images(first, image), _count_images(second, image),
            lambda work: joules_per_image(work, meter, window), pairs,
        )  # fmt: skip
    estimate = ratio_estimate(joules)
    return replace(estimate, method=f"{estimate.method}; {meter.name}"), joules


def describe_device(device: torch.device) -> str:
    """The machine of a measurement: GPU or number of CPU threads, and the version of torch."""
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)}, torch {torch.__version__}"
    return f"{torch.get_num_threads()} CPU threads, torch {torch.__version__}"


def _count_images(net: nn.Module, image: Tensor) -> Counted:
    def work() -> int:
        net(image)
        _synchronize(image.device)
        return len(image)

    return work


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _zone_name(zone: Path) -> str:
    file = zone / "name"
    return file.read_text().strip() if file.is_file() else ""


def _read_int(file: Path) -> int:
    try:
        return int(file.read_text())
    except PermissionError:
        raise EnergyUnavailableError(f"energy: no permission to read {file}") from None
    except (OSError, ValueError) as error:
        raise EnergyUnavailableError(f"energy: {file} cannot be read ({error})") from None
