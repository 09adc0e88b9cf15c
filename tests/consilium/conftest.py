"""An experiment of two tiny members, run once, and an ensemble of untrained members."""

from pathlib import Path

import pytest
import torch
import yaml

from consilium.cli.main import main
from consilium.inference.predictor import load_predictor
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from tests.conftest import ROOT, Tiny, drawing_plots
from tests.consilium.untrained import CLASSES, save_checkpoint, write_ensemble


@pytest.fixture(scope="session")
def experiment_file(tiny: Tiny) -> Path:
    """An experiment of two members and their ensemble, with a gate that cannot pass."""
    tiny.member("small", **{"trainer.max_epochs": 3, "data.init_args.num_workers": 2})
    tiny.member("large", **{"data.init_args.preprocess": {"size": 48, "clahe": 2.0}})
    ensemble = "lightning_modules.EnsembleModule"
    tiny.member("ensemble", model={"class_path": ensemble, "init_args": {"members": []}})
    content = {"base": str(ROOT / "configs/base.yaml"), "ensemble": "ensemble.yaml",
               "members": {"small": "small.yaml", "large": "large.yaml"},
               "gates": {"ensemble.accuracy": 0.0, "members.auroc": 1.0}}  # fmt: skip
    file = tiny.root / "experiment.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="session")
def experiment(experiment_file: Path, tiny: Tiny) -> Path:
    """Folder of the experiment after a run; one of its gates failed."""
    folder = tiny.root / "experiment"
    with drawing_plots():
        assert main(["experiment", "run", str(experiment_file), "--output", str(folder)]) == 1
    return folder


@pytest.fixture(scope="session")
def untrained_files(tmp_path_factory):
    """Checkpoints of two untrained members with different input sizes."""
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("members")
    members = {"small": ("test_resnet", 32), "large": ("test_efficientnet", 48)}
    return [
        save_checkpoint(
            ImageClassifier(CLASSES, backbone, image_size=size),
            Preprocess(size=size),
            folder / f"{name}.ckpt",
        )
        for name, (backbone, size) in members.items()
    ]


@pytest.fixture(scope="session")
def untrained_ensemble(untrained_files):
    """Folder with an ensemble.json of the untrained members."""
    return write_ensemble(untrained_files[0].parent / "ensemble", untrained_files)


@pytest.fixture(scope="session")
def predictor(untrained_ensemble):
    """The untrained ensemble."""
    return load_predictor(untrained_ensemble)
