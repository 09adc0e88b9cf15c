"""Every sample is counted once on any number of processes, and with plain loaders."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules import ImageDataModule, Phantoms
from datamodules.preprocess import Preprocess
from evaluation.predictions import PredictionTable
from lightning_modules import EnsembleModule, ImageClassifier, OneVsOneClassifier, checkpoints
from tests.conftest import exhaustive_except

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).parent / "base_processes.py"
SIZES = (21, 5, 1)
CLASSES = ["none", "simple", "comminuted"]


def run_script(world, folder, datamodule=""):
    """Runs the script on `world` processes, which write to `folder`."""
    folder.mkdir()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(SCRIPT), str(world), str(folder), datamodule],
        env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny, resnet, larger):
    """Manifests of 21, 5 and 1 test images, two members, and the results of one process."""
    folder = tmp_path_factory.mktemp("base")
    manifest = next((tiny.root / "phantoms").glob("fracture-*/manifest.csv"))
    rows = pd.read_csv(manifest)
    rows["path"] = [str(manifest.parent / path) for path in rows["path"]]
    for size in SIZES:
        subset = rows.iloc[:size].assign(split="test")
        subset["id"] = [f"other{i}" for i in range(size)]
        subset.to_csv(folder / f"{size}.csv", index=False)
    for name, run in (("member-a", resnet), ("member-b", larger)):
        shutil.copy(run / "best.ckpt", folder / f"{name}.ckpt")
    completed = run_script(1, folder / "one")
    assert completed.returncode == 0, completed.stderr
    return folder


@pytest.mark.parametrize("world", exhaustive_except([3], [2, 3, 4]))
def test_any_number_of_processes_gives_the_same_tables_and_metrics(root, world):
    completed = run_script(world, root / f"w{world}")
    assert completed.returncode == 0, completed.stderr
    folders = (root / "one", root / f"w{world}")
    expected, metrics = (json.loads((f / "metrics.json").read_text()) for f in folders)
    assert expected.keys() == metrics.keys()
    for name in expected:
        one, several = (PredictionTable.read(f / f"{name}.parquet") for f in folders)
        assert one.rows["id"].tolist() == several.rows["id"].tolist()
        np.testing.assert_allclose(one.probabilities, several.probabilities, atol=1e-6)
        for key, value in expected[name].items():
            assert metrics[name][key] == pytest.approx(value, abs=1e-6, nan_ok=True)
    assert len(expected) == 2 * len(SIZES)


def test_samples_repeated_by_the_default_sampler_are_an_error(root):
    completed = run_script(2, root / "padded", "padded")
    assert completed.returncode != 0
    assert "occurs twice" in completed.stderr


def plain_trainer(folder):
    """Lightning's trainer with its own callbacks and loggers."""
    return lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


@pytest.mark.parametrize("module_class", [ImageClassifier, OneVsOneClassifier])
def test_a_module_works_with_plain_loaders(module_class, tmp_path):
    images = torch.rand(12, 3, 32, 32)
    samples = [{"image": image, "label": i % 3, "index": i} for i, image in enumerate(images)]
    loader = DataLoader(samples, batch_size=5)
    module, trainer = module_class(CLASSES, "test_resnet"), plain_trainer(tmp_path)
    trainer.fit(module, loader, loader)
    assert module.class_weights is None
    path = trainer.checkpoint_callback.best_model_path
    block, _ = checkpoints.read(path)
    assert block.metrics["accuracy"] == module.metrics["val"]["accuracy"]
    (metrics,) = trainer.test(module, loader, ckpt_path=path, verbose=False)
    assert metrics["test/accuracy"] == pytest.approx(block.metrics["accuracy"])
    trainer.predict(module, loader)
    table = module.tables["predict"][""]
    assert table.rows["id"].tolist() == [str(i) for i in range(12)]
    with torch.inference_mode():
        np.testing.assert_allclose(table.logits, module.eval()(images), atol=1e-5)


def test_modules_work_from_python_with_the_data_module(tmp_path):
    """No config, no callback of this project; the ensemble sets the views of the data module."""
    source = Phantoms(
        num_patients=20, images_per_patient=1, root=str(tmp_path / "phantoms"), val=0.25, test=0.25
    )
    files = []
    for size in (32, 48):
        data = ImageDataModule(source, CLASSES, Preprocess(size=size), batch_size=8, num_workers=0)
        trainer = plain_trainer(tmp_path / str(size))
        trainer.fit(ImageClassifier(CLASSES, "test_resnet", image_size=size), data)
        files.append(trainer.checkpoint_callback.best_model_path)
    ensemble = EnsembleModule(CLASSES, files)
    plain_trainer(tmp_path).test(ensemble, data, verbose=False)
    tables = ensemble.tables["test"]
    assert len(tables) == 3
    assert set(tables[""].rows["split"]) == {"test"}
    single, _ = checkpoints.load(files[1])
    plain_trainer(tmp_path).test(single, data, verbose=False)  # the views are its own again
    expected = single.tables["test"][""].logits
    np.testing.assert_allclose(tables[ensemble.member_names[1]].logits, expected, atol=1e-6)
