"""Joules from made-up counters: what they say, where they begin anew, and why there are none."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_modules.pruning import energy, latency


def package(root, name, joules, most=2**32, kind="package-0"):
    zone = root / name
    zone.mkdir(parents=True)
    (zone / "name").write_text(f"{kind}\n")
    (zone / "energy_uj").write_text(f"{int(joules * 1e6)}\n")
    (zone / "max_energy_range_uj").write_text(f"{most}\n")
    return zone / "energy_uj"


def test_packages_are_summed_and_their_parts_are_not(tmp_path):
    first = package(tmp_path, "intel-rapl:0", 10)
    second = package(tmp_path, "intel-rapl:1", 20)
    package(tmp_path, "intel-rapl:0:0", 5, kind="core")
    package(tmp_path, "intel-rapl:2", 99, kind="psys")
    meter = energy.rapl(tmp_path)
    before = meter.read()
    first.write_text("12500000")
    second.write_text("20250000")
    assert meter.joules(before, meter.read()) == 2.75


def test_a_counter_that_began_anew_is_followed(tmp_path):
    file = package(tmp_path, "intel-rapl:0", 262.0, most=262_143_328)
    meter = energy.rapl(tmp_path)
    before = meter.read()
    file.write_text("1000000")
    assert meter.joules(before, meter.read()) == pytest.approx(0.143329 + 1.0)


def test_what_cannot_be_read_is_said(tmp_path, monkeypatch):
    with pytest.raises(energy.Unmeasured, match="has no RAPL packages"):
        energy.rapl(tmp_path / "none")
    file = package(tmp_path, "intel-rapl:0", 1)
    file.write_text("?")
    with pytest.raises(energy.Unmeasured, match="energy_uj cannot be read"):
        energy.rapl(tmp_path)
    real = Path.read_text

    def forbidden(path, *arguments, **named):
        if path == file:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", forbidden)  # a test may run as root, who may read all
    with pytest.raises(energy.Unmeasured, match="energy_uj may not be read by this user"):
        energy.rapl(tmp_path)


class Meter:
    """Counts 1 J an image of the first work and 2 J of the second."""

    name = "made up"

    def __init__(self):
        self.counted, self.at = 0, 0.0

    def read(self):
        return [self.counted]

    def joules(self, before, after):
        return float(after[0] - before[0])

    def work(self, images, joules, seconds):
        def run():
            self.counted += joules * images
            self.at += seconds
            return images

        return run


def test_a_window_lasts_until_its_seconds_are_over():
    meter = Meter()
    spent = energy.spent(meter.work(8, 3, 7.0), meter, 30.0, clock=lambda: meter.at)
    assert spent == 3.0
    assert meter.at == 35.0


def test_pairs_take_turns_and_keep_their_order():
    meter, order = Meter(), []

    def noted(name, work):
        return lambda: (order.append(name), work())[1]

    one, other = (noted(n, meter.work(4, j, 31.0)) for n, j in (("one", 1), ("other", 2)))
    found = energy.ratios(one, other, meter, pairs=3, clock=lambda: meter.at)
    assert found == [(1.0, 2.0)] * 3
    assert order == ["one", "other", "other", "one", "one", "other"]


def test_a_machine_without_a_counter_gives_null_and_the_reason(tmp_path):
    net = torch.nn.Linear(2, 2)
    figure, joules = latency.energy_ratio(net, net, torch.zeros(1, 2), powercap=tmp_path)
    assert (figure.value, joules) == (None, [])
    assert "has no RAPL packages" in figure.reason


class Spending(torch.nn.Module):
    """Its every image costs a joule, by the counter in `file`."""

    def __init__(self, file):
        super().__init__()
        self.file = file

    def forward(self, images):
        self.file.write_text(str(int(self.file.read_text()) + 1_000_000 * len(images)))


def test_a_ratio_of_joules_says_what_counted_them(tmp_path):
    net, image = Spending(package(tmp_path, "intel-rapl:0", 0)), torch.zeros(2, 1)
    figure, joules = latency.energy_ratio(net, net, image, 2, 0.05, tmp_path)
    assert (figure.value, joules) == (1, [(1, 1)] * 2)
    assert figure.method == "median of pairs, bootstrap; RAPL (whole processor packages)"


def test_a_gpu_is_asked_in_millijoules_and_refusals_are_said(monkeypatch):
    class NVMLError(Exception):
        """What the library raises."""

    def count(device):
        if device == 1:
            raise NVMLError("Not Supported")
        return 5_000

    library = SimpleNamespace(
        NVMLError=NVMLError, nvmlInit=lambda: None, nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetTotalEnergyConsumption=count,
    )  # fmt: skip
    monkeypatch.setitem(__import__("sys").modules, "pynvml", library)
    meter = energy.counter(torch.device("cuda", 0))
    assert meter.joules([5_000], [7_500]) == 2.5
    with pytest.raises(energy.Unmeasured, match=r"no energy counter here \(Not Supported\)"):
        energy.nvml(1)
    monkeypatch.setitem(__import__("sys").modules, "pynvml", None)
    with pytest.raises(energy.Unmeasured, match="needs the package nvidia-ml-py"):
        energy.nvml(0)
