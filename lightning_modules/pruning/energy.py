"""Joules as this machine counts them itself: NVIDIA's counter, or RAPL's; never an estimate."""

import importlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from lightning_modules.pruning.turns import in_turns

Work = Callable[[], int]  # says how many images it did
POWERCAP = Path("/sys/class/powercap")
SECONDS = 30.0  # a shorter window says more of what ran before it than of the work
PAIRS = 4


class Unmeasured(ValueError):
    """Energy cannot be measured here; the message says why."""


class Counter(Protocol):
    """Something that has counted joules since some moment."""

    @property
    def name(self) -> str:
        """What is counted, by what."""

    def read(self) -> list[int]:
        """Its counts now."""

    def joules(self, before: list[int], after: list[int]) -> float:
        """What was spent between two readings."""


@dataclass(frozen=True)
class Rapl:
    """Processor packages; the whole machine's work counts, not this process's alone.

    A package's count starts again at 0 beyond its `max_energy_range_uj`. It must be read at
    least once a round, which takes minutes.
    """

    packages: list[Path]
    ranges: list[int]
    name: str = "RAPL (whole processor packages)"

    def read(self) -> list[int]:
        """Microjoules of each package."""
        return [_number(package / "energy_uj") for package in self.packages]

    def joules(self, before: list[int], after: list[int]) -> float:
        """Sum over the packages, each at most once around."""
        rounds = zip(before, after, self.ranges, strict=True)
        return sum((b - a) % (most + 1) for a, b, most in rounds) / 1e6


@dataclass(frozen=True)
class Nvml:
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


def counter(device: torch.device, powercap: Path = POWERCAP) -> Counter:
    """The counter of the device that computes; `Unmeasured` where there is none to read."""
    return nvml(device.index or 0) if device.type == "cuda" else rapl(powercap)


def rapl(powercap: Path = POWERCAP) -> Rapl:
    """The packages below `powercap`; parts of a package (a second colon) are in it already."""
    zones = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
    packages = [zone for zone in zones if zone.name.count(":") == 1 and _kind(zone) != "psys"]
    if not packages:
        raise Unmeasured(f"energy: {powercap} has no RAPL packages (intel-rapl:N)")
    ranges = [_number(package / "max_energy_range_uj") for package in packages]
    found = Rapl(packages, ranges)
    found.read()
    return found


def nvml(index: int) -> Nvml:
    """The counter of a GPU; needs nvidia-ml-py, and a GPU of 2017 (Volta) or later."""
    try:
        library = importlib.import_module("pynvml")
    except ImportError:
        raise Unmeasured("energy: NVML needs the package nvidia-ml-py") from None
    try:
        library.nvmlInit()
        found = Nvml(library, library.nvmlDeviceGetHandleByIndex(index))
        found.read()
    except library.NVMLError as error:
        raise Unmeasured(f"energy: NVML has no energy counter here ({error})") from None
    return found


def spent(
    work: Work, meter: Counter, seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> float:  # fmt: skip
    """Joules an image, of `work` repeated for `seconds`."""
    before, start, images = meter.read(), clock(), 0
    while clock() - start < seconds:
        images += work()
    return meter.joules(before, meter.read()) / images


def ratios(
    one: Work, other: Work, meter: Counter, pairs: int = PAIRS, seconds: float = SECONDS,
    clock: Callable[[], float] = time.monotonic,
) -> list[tuple[float, float]]:  # fmt: skip
    """Joules an image of both, in `pairs` windows each that take turns in going first."""
    return in_turns(one, other, lambda work: spent(work, meter, seconds, clock), pairs)


def _kind(zone: Path) -> str:
    file = zone / "name"
    return file.read_text().strip() if file.is_file() else ""


def _number(file: Path) -> int:
    try:
        return int(file.read_text())
    except PermissionError:
        raise Unmeasured(f"energy: {file} may not be read by this user") from None
    except (OSError, ValueError) as error:
        raise Unmeasured(f"energy: {file} cannot be read ({error})") from None
