"""Two untrained members and their council, for what needs no training."""

import pytest
import torch

from commands.looking import load
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier
from tests.commands.saved import CLASSES, council_of, saved


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
def served_council(served_files):
    return council_of(served_files[0].parent / "council", served_files)


@pytest.fixture(scope="session")
def served_model(served_council):
    return load(served_council)
