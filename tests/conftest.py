"""Fixtures of all tests: no network, one thread, and tiny trained members.

Torch is imported in functions: the process that only distributes the tests does without it.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# also in subprocesses: results are bitwise equal only for equal numbers of threads
os.environ["OMP_NUM_THREADS"] = "1"

import base64
import gc
import shutil
import socket
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).parents[1]
LOCAL = ("127.0.0.1", "::1", "localhost", "0.0.0.0")
REQUIRED = "CONSILIUM_BROWSER"
BLANK_PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAsTj2FAAAAABJRU5ErkJggg=="
)


def pytest_collection_finish() -> None:
    """One thread, and no garbage collection of what was imported, which takes long each time."""
    import torch

    from consilium import reuse_freed_memory

    reuse_freed_memory()
    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints how the attacks ended, with workers as well."""
    for report in terminalreporter.stats.get("passed", []):
        if "tests/attack/" in report.nodeid:
            lines = report.capstdout.splitlines()
            for line in (line for line in lines if " attacks, " in line):
                terminalreporter.write_line(line)


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks every connection to another machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> None:
        if isinstance(address, tuple) and address[0] not in LOCAL:
            raise OSError(f"a test opened a network connection: {address}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


_is_drawing = False


@pytest.fixture(scope="session", autouse=True)
def _blank_plots() -> Iterator[None]:
    """Leaves plots of reports blank: drawing them takes more time than a short fit."""
    from evaluation.reports import html

    png = html.Plot.png
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(html.Plot, "png", lambda plot: png(plot) if _is_drawing else BLANK_PNG)
        yield


@contextmanager
def drawing_plots() -> Iterator[None]:
    """Draws the plots of reports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}._is_drawing", True)
        yield


@pytest.fixture
def drawn_plots() -> Iterator[None]:
    """Draws the plots of reports; the fixtures `resnet` and `experiment` do so as well."""
    with drawing_plots():
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; without it the tests of pages are skipped, or fail if `REQUIRED` is set."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if not program and not os.environ.get(REQUIRED):
        pytest.skip(f"no browser: apt-get install chromium ({REQUIRED}=1 makes this a failure)")
    assert program, f"{REQUIRED} is set, and there is no browser: apt-get install chromium"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield chromium
        chromium.close()


def exhaustive_except(fast: Container[object], values: Iterable[object]) -> list[object]:
    """The values as parameters of a test, those that are not in `fast` marked exhaustive."""
    mark = pytest.mark.exhaustive
    return [value if value in fast else pytest.param(value, marks=mark) for value in values]


class Tiny(NamedTuple):
    """Writes config files of members that train in seconds, and trains them."""

    root: Path

    def member(self, name: str, **changes: object) -> Path:
        """Writes `name`.yaml: test_resnet on small phantoms, changed at dotted keys."""
        config = yaml.safe_load(TINY_CONFIG.format(root=self.root))
        for key, value in changes.items():
            *parents, last = key.split(".")
            section = config
            for parent in parents:
                section = section.setdefault(parent, {})
            section[last] = value
        file = self.root / f"{name}.yaml"
        file.write_text(yaml.safe_dump(config))
        return file

    def fit(self, name: str, run: Path, *arguments: str, **changes: object) -> Path:
        """Fits and tests a member in this process and returns its run folder."""
        from consilium.cli.main import main

        configs = self.configs(name, **changes)
        assert main(["fit", *configs, "--run", str(run), "--test", "true", *arguments]) == 0
        return run

    def configs(self, name: str, **changes: object) -> list[str]:
        """The arguments that name the config files of a member."""
        return ["--config", str(ROOT / "configs/base.yaml"),
                "--config", str(self.member(name, **changes))]  # fmt: skip


TINY_CONFIG = """
data:
  class_path: datamodules.ImageDataModule
  init_args:
    source:
      class_path: datamodules.Phantoms
      init_args: {{kind: fracture, num_patients: 30, images_per_patient: 2, image_size: 64,
                   root: {root}/phantoms, val: 0.25, test: 0.3}}
    class_names: [none, simple, comminuted]
    preprocess: {{size: 32}}
    augment: fracture
    batch_size: 8
    num_workers: 0
model:
  class_path: lightning_modules.ImageClassifier
  init_args:
    backbone: test_resnet
    backbone_args: {{drop_rate: 0.2}}
    optimizer: {{lr: 0.002}}
    lr_scheduler: {{name: cosine}}
trainer: {{accelerator: cpu, devices: 1, max_epochs: 2}}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Configs and runs of tiny members in one folder."""
    return Tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def resnet(tiny: Tiny) -> Path:
    """Run folder of a trained test_resnet at 32 px."""
    with drawing_plots():
        return tiny.fit("resnet", tiny.root / "runs" / "resnet")


@pytest.fixture(scope="session")
def larger(tiny: Tiny) -> Path:
    """Run folder of a trained test_resnet at 48 px: another view of the same images."""
    return tiny.fit("larger", tiny.root / "runs" / "larger",
                    **{"data.init_args.preprocess": {"size": 48, "clahe": 2.0}})  # fmt: skip
