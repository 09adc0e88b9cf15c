"""Models of a user, named by class path in a config: trained, loaded and refused."""

import sys
from pathlib import Path

import pytest
import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader

from consilium.cli.main import main
from consilium.experiments.processes import start_fork
from lightning_modules import ImageClassifier, OneVsOneClassifier, checkpoints
from tests.user_classes import ScaledClassifier

CLASSES = ["none", "simple", "comminuted"]
OWN_MODULE = """
from lightning_modules import ImageClassifier

class Adapter(ImageClassifier):
    def __init__(self, class_names: list[str], width: int = 3, **kwargs):
        super().__init__(class_names, **kwargs)
        self.width = width

    def forward(self, image):
        return self.width * super().forward(image)
"""


@pytest.fixture
def working_directory(tmp_path, monkeypatch):
    """A working directory with a module of a user, which no path of Python has yet."""
    (tmp_path / "own_adapter.py").write_text(OWN_MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delenv("CONSILIUM_IMPORT", raising=False)
    yield tmp_path
    sys.modules.pop("own_adapter", None)
    checkpoints.REGISTRY.pop("Adapter", None)


@pytest.fixture
def adapter(tiny, working_directory):
    """Run folder of the user's model, trained for one epoch with a setting of its own."""
    model = {"model.class_path": "own_adapter.Adapter", "model.init_args.width": 5}
    return tiny.fit("adapter", working_directory / "run", **model, **{"trainer.max_epochs": 1})


def test_model_of_the_working_directory_is_trained_and_tested(adapter, capsys):
    module, block = checkpoints.load(adapter / "best.ckpt")
    assert (block.module, block.init_args["width"], module.width) == ("Adapter", 5, 5)
    assert main(["test", "--config", str(adapter / "config.yaml"), "--run", str(adapter)]) == 0


def inspect_in_another_process(*arguments):
    """Exit code and output of `consilium inspect`."""
    with Path("log.txt").open("wb") as log, Path("lock").open("w") as lock:
        code = start_fork(["inspect", *arguments], log, lock).wait()
    return code, Path("log.txt").read_text()


@pytest.mark.exhaustive
def test_checkpoint_of_an_own_model_loads_after_import_and_never_imports_it_itself(adapter):
    """In a process of its own, as nothing can be unimported."""
    checkpoint = str(adapter / "best.ckpt")
    code, output = inspect_in_another_process(checkpoint)
    assert code == 2
    assert "module 'Adapter' is not one of" in output
    assert "consilium --import MODULE" in output
    code, output = inspect_in_another_process(checkpoint, "--import", "own_adapter")
    assert code == 0, output
    assert "Adapter with backbone test_resnet" in output


def test_import_of_an_unknown_module_is_one_line(capsys):
    assert main(["inspect", "x.ckpt", "--import", "no_such_module"]) == 2
    assert "No module named 'no_such_module'" in capsys.readouterr().err


@pytest.mark.parametrize("parent", [ImageClassifier, OneVsOneClassifier])
def test_arguments_of_an_own_constructor_are_recorded(parent):
    class Widened(parent):
        def __init__(self, class_names: list[str], width: int = 2, **kwargs) -> None:
            super().__init__(class_names, backbone="test_resnet", **kwargs)
            self.extra = nn.Linear(width, width)

    try:
        model = Widened(CLASSES, width=7, backbone_args={"drop_rate": 0.5})
        expected = {"class_names": CLASSES, "width": 7, "backbone_args": {"drop_rate": 0.5}}
        assert model.init_args == expected
        assert Widened(**model.init_args).extra.weight.shape == (7, 7)
    finally:
        del checkpoints.REGISTRY["Widened"]


def test_name_of_another_class_is_refused():
    with pytest.raises(ValueError, match=r"this name means lightning_modules\.classifier\.Image"):
        type("ImageClassifier", (ScaledClassifier,), {})
    assert checkpoints.REGISTRY["ImageClassifier"] is ImageClassifier


@pytest.mark.parametrize("value", [nn.Identity(), torch.zeros(1), object, {"a": [Path()]}])
def test_argument_that_a_checkpoint_cannot_hold_is_refused_before_training(value):
    with pytest.raises(ValueError, match=r"^Own: its argument net.*is not a plain value"):
        checkpoints.require_plain("Own", {"width": 3, "net": value})
    checkpoints.require_plain("Own", {"a": [1, (2.0, None)], "b": {"c": "d", "e": True}})


def test_fit_of_a_model_with_such_an_argument_trains_no_step(tmp_path):
    class Own(ImageClassifier):
        def __init__(self, class_names: list[str], extra: nn.Module) -> None:
            super().__init__(class_names, backbone="test_resnet")

    batch = {"image": torch.zeros(2, 3, 32, 32), "label": torch.zeros(2).long()}
    try:
        model, loader = Own(CLASSES, nn.Identity()), DataLoader([batch], batch_size=None)
        trainer = Trainer(accelerator="cpu", logger=False, default_root_dir=tmp_path, max_epochs=1)
        with pytest.raises(ValueError, match=r"^Own: its argument extra is not a plain value"):
            trainer.fit(model, loader)
        assert trainer.global_step == 0
    finally:
        del checkpoints.REGISTRY["Own"]


def test_model_without_checkpoints_is_refused_before_training(tiny, tmp_path, capsys):
    configs = tiny.configs("foreign", **{"model.class_path": "lightning_modules.base.BaseModule",
                                         "model.init_args": {}})  # fmt: skip
    assert main(["fit", *configs, "--run", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert (
        "lightning_modules.base.BaseModule is no subclass of lightning_modules.ImageClass" in error
    )
    assert not (tmp_path / "run").exists()
