"""Models and data modules from Python, without config files and without callbacks of ours."""

import re
from dataclasses import asdict
from functools import partial
from pathlib import Path

import lightning as L
import pytest

from callbacks import TwoStageSparseTraining
from datamodules import ImageDataModule, Phantoms
from datamodules.preprocess import Preprocess
from lightning_modules import ImageClassifier, OneVsOneClassifier
from lightning_modules.optim import OptimizerConfig

README = Path(__file__).parents[1] / "README.md"
CLASSES = ["none", "simple", "comminuted"]


@pytest.mark.parametrize("model_class", [ImageClassifier, OneVsOneClassifier])
def test_model_is_fitted_and_tested_by_a_plain_trainer(tmp_path, model_class):
    source = Phantoms("fracture", 30, 2, 64, root=str(tmp_path / "phantoms"))
    data = ImageDataModule(source, CLASSES, Preprocess(size=32), batch_size=8, num_workers=0)
    model = model_class(class_names=CLASSES, backbone="test_resnet")
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
                        enable_progress_bar=False, enable_model_summary=False)  # fmt: skip
    trainer.fit(model, data)
    assert trainer.callback_metrics["val/loss"] > 0
    (metrics,) = trainer.test(model, data, verbose=False)
    assert 0 <= metrics["test/accuracy"] <= 1
    assert len(model.tables["test"][""]) == len(data.rows("test"))


@pytest.mark.exhaustive
def test_python_example_of_the_readme_runs(tmp_path, monkeypatch):
    """With two batches of each split."""
    limits = {f"limit_{split}_batches": 2 for split in ("train", "val", "test")}
    monkeypatch.setattr(L, "Trainer", partial(L.Trainer, **limits))
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.M | re.S)
    exec(code, {})


def test_groups_of_settings_may_be_dicts():
    groups = {"optimizer": {"name": "sgd", "lr": 0.1}, "loss": {"name": "focal"},
              "lr_scheduler": {"name": "cosine"}, "fine_tuning": {"layer_decay": 0.5}}  # fmt: skip
    for model_class in (ImageClassifier, OneVsOneClassifier):
        model = model_class(["a", "b"], "test_resnet", **groups)
        assert model.optimizer == OptimizerConfig("sgd", lr=0.1)
        assert model.init_args["optimizer"] == asdict(model.optimizer)
        assert model.fine_tuning.layer_decay == 0.5
    with pytest.raises(ValueError, match=r"optimizer\.lr: -1 is not at least 0"):
        ImageClassifier(["a", "b"], "test_resnet", optimizer={"lr": -1})
    sparse = TwoStageSparseTraining(recovery={"lr": 1e-3}, density_schedule={"num_updates": 3})
    assert (sparse.recovery.lr, sparse.density_schedule.num_updates) == (1e-3, 3)
