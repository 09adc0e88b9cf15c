"""Energy from simulated counters: sums, restarts, and reasons why there is no measurement."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_modules.pruning import measure


def add_package(root, name, joules, largest=2**32, kind="package-0"):
    zone = root / name
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{kind}\n")
    (zone / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (zone / "max_energy_range_uj").write_text(f"{largest}\n")
    return zone / "energy_uj"


def test_packages_are_summed_without_their_parts(tmp_path):
    first = add_package(tmp_path, "intel-rapl:0", 10)
    second = add_package(tmp_path, "intel-rapl:1", 20)
    add_package(tmp_path, "intel-rapl:0:0", 5, kind="core")
    add_package(tmp_path, "intel-rapl:2", 99, kind="psys")
    meter = measure.rapl_meter(tmp_path)
    before = meter.read()
    first.write_text("12500000")
    second.write_text("20250000")
    assert meter.joules(before, meter.read()) == 2.75


def test_a_restart_of_the_counter_is_accounted_for(tmp_path):
    file = add_package(tmp_path, "intel-rapl:0", 262.0, largest=262_143_328)
    meter = measure.rapl_meter(tmp_path)
    before = meter.read()
    file.write_text("1000000")
    assert meter.joules(before, meter.read()) == pytest.approx(0.143329 + 1.0)


def test_unreadable_counters_give_the_reason(tmp_path, monkeypatch):
    with pytest.raises(measure.EnergyUnavailableError, match="has no RAPL packages"):
        measure.rapl_meter(tmp_path / "none")
    file = add_package(tmp_path, "intel-rapl:0", 1)
    file.write_text("?")
    with pytest.raises(measure.EnergyUnavailableError, match="energy_uj cannot be read"):
        measure.rapl_meter(tmp_path)
    read_text = Path.read_text

    def refuse(path, *args, **kwargs):
        if path == file:
            raise PermissionError(13, "Permission denied")
        return read_text(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", refuse)  # the tests may run as root, who can read all
    with pytest.raises(measure.EnergyUnavailableError, match=r"no permission to read .*energy_uj"):
        measure.rapl_meter(tmp_path)


class SimulatedMeter:
    name = "simulated"

    def __init__(self):
        self.count, self.seconds = 0, 0.0

    def read(self):
        return [self.count]

    def joules(self, before, after):
        return float(after[0] - before[0])

    def net(self, images):
        self.count += 3 * len(images)
        self.seconds += 7.0


def test_a_window_lasts_for_its_seconds(monkeypatch):
    meter = SimulatedMeter()
    monkeypatch.setattr(measure.time, "monotonic", lambda: meter.seconds)
    assert measure.joules_per_image(meter.net, torch.zeros(8, 1), meter) == 3.0
    assert meter.seconds == 35.0


def test_measurements_take_turns_in_going_first():
    order = []

    def record(name):
        order.append(name)
        return name

    pairs = measure.measure_in_turns("first", "second", record, pairs=3)
    assert pairs == [("first", "second")] * 3
    assert order == ["first", "second", "second", "first", "first", "second"]


def test_without_a_counter_the_energy_is_null_with_the_reason(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "POWERCAP", tmp_path)
    net = torch.nn.Linear(2, 2)
    estimate, joules = measure.energy_ratio(net, net, torch.zeros(1, 2))
    assert (estimate.value, joules) == (None, [])
    assert "has no RAPL packages" in estimate.reason


class SpendingNet(torch.nn.Module):
    """Adds one joule per image to the counter in `file`."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def forward(self, images):
        self.file.write_text(str(int(self.file.read_text()) + 1_000_000 * len(images)))


def test_the_method_of_an_energy_ratio_names_the_counter(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "POWERCAP", tmp_path)
    monkeypatch.setattr(measure, "WINDOW_SECONDS", 0.05)
    net, image = SpendingNet(add_package(tmp_path, "intel-rapl:0", 0)), torch.zeros(2, 1)
    estimate, joules = measure.energy_ratio(net, net, image)
    assert (estimate.value, joules) == (1, [(1, 1)] * 4)
    assert estimate.method == "median of pairs, bootstrap; RAPL (whole processor packages)"


def test_a_gpu_counts_millijoules_and_its_errors_are_reasons(monkeypatch):
    class NVMLError(Exception):
        pass

    def total_energy(device):
        if device == 1:
            raise NVMLError("Not Supported")
        return 5_000

    library = SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetTotalEnergyConsumption=total_energy,
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "pynvml", library)
    meter = measure.nvml_meter(0)
    assert meter.joules([5_000], [7_500]) == 2.5
    reason = r"no energy counter for this GPU \(Not Supported\)"
    with pytest.raises(measure.EnergyUnavailableError, match=reason):
        measure.nvml_meter(1)
    monkeypatch.setitem(sys.modules, "pynvml", None)
    with pytest.raises(measure.EnergyUnavailableError, match="needs the package nvidia-ml-py"):
        measure.nvml_meter(0)
