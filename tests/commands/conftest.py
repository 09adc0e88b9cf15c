"""A study of two tiny members, run once from nothing."""

from pathlib import Path

import pytest
import yaml

from main import main
from tests.conftest import ROOT, Tiny


@pytest.fixture(scope="session")
def study_file(tiny: Tiny) -> Path:
    """Two members, their council, and a gate that cannot pass."""
    tiny.member("small", **{"trainer.max_epochs": 3, "data.init_args.workers": 2})
    tiny.member("large", **{"data.init_args.preprocess": {"size": 48, "clahe": 2.0}})
    members = "lightning_modules.EnsembleModule"
    tiny.member("council", model={"class_path": members, "init_args": {"members": []}})
    study = {"base": str(ROOT / "configs/base.yaml"), "council": "council.yaml",
             "members": {"small": "small.yaml", "large": "large.yaml"},
             "gates": {"council.accuracy": 0.0, "members.auroc": 1.1}}  # fmt: skip
    file = tiny.root / "study.yaml"
    file.write_text(yaml.safe_dump(study))
    return file


@pytest.fixture(scope="session")
def study(study_file: Path, tiny: Tiny) -> Path:
    """Folder of the study, run from nothing; one of its gates cannot pass."""
    folder = tiny.root / "study"
    assert main(["study", "run", str(study_file), "--output", str(folder)]) == 1
    return folder
