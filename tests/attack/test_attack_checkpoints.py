"""Malformed checkpoints end in one line that names the file, and take little memory."""

import json
import random
import resource
import shutil
from contextlib import suppress
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from consilium.cli.main import main
from consilium.inference.export import load_with_backend
from datamodules.preprocess import Preprocess
from evaluation.files import json_digest
from evaluation.metrics.calibration import Calibration
from evaluation.voters.simple import Weighted
from evaluation.voters.store import FittedEnsemble
from lightning_modules import EnsembleModule, ImageClassifier, packing
from lightning_modules import ensemble as ensembles
from lightning_modules.checkpoints import read
from tests.attack.checkpoints import malformed_checkpoints, malformed_json
from tests.attack.outcomes import Outcomes
from tests.consilium.untrained import CLASSES, save_checkpoint, write_ensemble

CPU = torch.device("cpu")

STATUS, PEAK_RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
MAX_MEMORY = 700 << 20  # over the start, for files of at most a few megabytes


def memory(name: str) -> int:
    """Bytes of this process: VmSize; resident are VmRSS now, VmHWM at most since the reset."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) << 10


@pytest.fixture(autouse=True)
def limited_memory():
    """An attack that succeeds ends in a MemoryError, not with the machine."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory("VmSize") + (4 << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """An intact checkpoint of an untrained network."""
    torch.manual_seed(0)
    module = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    folder = tmp_path_factory.mktemp("intact")
    return save_checkpoint(module, Preprocess(size=32), folder / "intact.ckpt")


@pytest.fixture(scope="module")
def packed(checkpoint):
    """Its export in the packed format."""
    arguments = ["--format", "packed", "-o", str(checkpoint.parent / "packed")]
    assert main(["export", str(checkpoint), *arguments]) == 0
    return checkpoint.parent / "packed" / f"intact{packing.SUFFIX}"


@pytest.mark.parametrize("slow", [False, pytest.param(True, marks=pytest.mark.exhaustive)])
def test_malformed_checkpoints_are_refused_in_one_line_without_much_memory(
    checkpoint, packed, tmp_path, monkeypatch, capsys, slow
):
    monkeypatch.chdir(tmp_path)
    inspected, loaded, number = Outcomes("inspect"), Outcomes("load"), 0
    step = 1 if slow else 4
    files = islice(malformed_checkpoints(checkpoint, packed, tmp_path, slow), 0, None, step)
    for file in files:
        number += 1
        PEAK_RESET.write_text("5")
        start = memory("VmRSS")
        inspected.command(file.name, capsys, "inspect", file)
        loaded.call(file.name, lambda file=file: EnsembleModule(CLASSES, [str(file)]))
        if (used := memory("VmHWM") - start) > MAX_MEMORY:
            loaded.failures.append(f"{file.name}: took {used >> 20} MB")
    inspected.require(number)
    loaded.require(number)
    assert number >= (44 if slow else 20)
    assert not (tmp_path / "executed").exists()


@pytest.fixture(scope="module")
def ensemble(checkpoint):
    """Folder of an ensemble with a fitted voter."""
    weights = read(checkpoint)[0].weights
    voter = FittedEnsemble(Weighted(np.ones(1)), [weights], CLASSES, Calibration(0.7), "val")
    return write_ensemble(checkpoint.parent / "ensemble", [checkpoint], voter)


@pytest.fixture(scope="module")
def exported(ensemble):
    """Its export to safetensors."""
    folder = ensemble.parent / "export"
    assert main(["export", str(ensemble), "--format", "safetensors", "-o", str(folder)]) == 0
    return folder


@pytest.mark.parametrize("count", [30, pytest.param(300, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("name", ["ensemble.json", "voter.json", "export.json"])
def test_malformed_json_files_are_refused_in_one_line(ensemble, exported, name, count, tmp_path):
    source = exported if name == "export.json" else ensemble
    folder = tmp_path / source.name
    shutil.copytree(source, folder)
    file, outcomes = folder / name, Outcomes(name)
    content = json.loads(file.read_text())
    if name == "ensemble.json":
        content["members"]["intact"]["path"] = str(ensemble.parent / "intact.ckpt")
    cases = [*malformed_json(content), [], 1, "x", None]
    cases = random.Random(0).sample(cases, min(count, len(cases)))
    for number, case in enumerate(cases):
        if isinstance(case, dict):  # who changes a file can also compute its digest
            with suppress(Exception):
                case = case | {"digest": ensembles._digest(case) if name == "ensemble.json"
                               else json_digest(case)}  # fmt: skip
        file.write_text(json.dumps(case))
        outcomes.call(f"{number} {str(case)[:2000]}", lambda: load_with_backend(folder, None, CPU))
    outcomes.require(len(cases))
