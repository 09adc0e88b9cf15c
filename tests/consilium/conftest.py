"""A study of two tiny members, run once; and an untrained ensemble, for what needs no training."""

from pathlib import Path

import pytest
import torch
import yaml

from consilium.cli.main import main
from consilium.inference.predictor import load
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from tests.conftest import ROOT, Tiny
from tests.consilium.saved import CLASSES, ensemble_of, saved


@pytest.fixture(scope="session")
def study_file(tiny: Tiny) -> Path:
    """Two members, their ensemble, and a gate that cannot pass."""
    tiny.member("small", **{"trainer.max_epochs": 3, "data.init_args.workers": 2})
    tiny.member("large", **{"data.init_args.preprocess": {"size": 48, "clahe": 2.0}})
    members = "lightning_modules.EnsembleModule"
    tiny.member("ensemble", model={"class_path": members, "init_args": {"members": []}})
    study = {"base": str(ROOT / "configs/base.yaml"), "ensemble": "ensemble.yaml",
             "members": {"small": "small.yaml", "large": "large.yaml"},
             "gates": {"ensemble.accuracy": 0.0, "members.auroc": 1.0}}  # fmt: skip
    file = tiny.root / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


@pytest.fixture(scope="session")
def study(study_file: Path, tiny: Tiny) -> Path:
    """Folder of the study, run from nothing; one of its gates cannot pass."""
    folder = tiny.root / "study"
    assert main(["experiment", "run", str(study_file), "--output", str(folder)]) == 1
    return folder


@pytest.fixture(scope="session")
def served_files(tmp_path_factory):
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("members")
    made = {"small": ("test_resnet", 32), "large": ("test_efficientnet", 48)}
    return [
        saved(ImageClassifier(CLASSES, name, image_size=size), Preprocess(size=size),
              folder / f"{file}.ckpt")
        for file, (name, size) in made.items()
    ]  # fmt: skip


@pytest.fixture(scope="session")
def served_ensemble(served_files):
    return ensemble_of(served_files[0].parent / "ensemble", served_files)


@pytest.fixture(scope="session")
def served_model(served_ensemble):
    return load(served_ensemble)
