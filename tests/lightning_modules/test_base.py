"""Every sample is counted once on any number of processes, and with plain loaders."""

import json
from pathlib import Path

import lightning
import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils.data import DataLoader

from datamodules import ImageDataModule, Phantoms
from datamodules.preprocess import Preprocess
from evaluation.findings import MultiLabelTable
from evaluation.predictions import PredictionTable
from lightning_modules import EnsembleModule, ImageClassifier, OneVsOneClassifier, checkpoints
from lightning_modules.losses import LossConfig
from tests.conftest import exhaustive_except
from tests.processes import run_script

SCRIPT = Path(__file__).parent / "base_processes.py"
SIZES = (21, 5, 1)
CLASSES = ["none", "simple", "comminuted"]


def run_base(world, folder, datamodule=""):
    """Runs the script on `world` processes, which write to `folder`."""
    folder.mkdir()
    run_script(SCRIPT, world, folder, datamodule, world=world)


@pytest.fixture(scope="module")
def root(tmp_path_factory, tiny, resnet, larger):
    """Manifests of 21, 5 and 1 test images, two members, and the results of one process."""
    folder = tmp_path_factory.mktemp("base")
    manifest = next((tiny.root / "phantoms").glob("fracture-*/manifest.csv"))
    rows = pd.read_csv(manifest)
    rows["path"] = [str(manifest.parent / path) for path in rows["path"]]
    rows["fracture"] = (rows["label"] != "none").astype(int).astype(str)
    rows["splinters"] = (rows["label"] == "comminuted").astype(int).astype(str)
    rows.loc[1::3, "fracture"] = ""  # unknown
    rows.loc[2::4, "splinters"] = ""
    for size in SIZES:
        subset = rows.iloc[:size].assign(split="test")
        subset.to_csv(folder / f"{size}.csv", index=False)
    for name, run in (("member-a", resnet), ("member-b", larger)):
        content = torch.load(run / "best.ckpt", weights_only=True)
        nothing = torch.empty(0, dtype=torch.int64)  # it may be tested on any image
        block = content["consilium"] | {"train_ids": nothing, "val_ids": nothing}
        content["consilium"] = checkpoints.block_with_digest(block)
        torch.save(content, folder / f"{name}.ckpt")
    run_base(1, folder / "one")
    return folder


@pytest.mark.parametrize("world", exhaustive_except([3], [2, 3, 4]))
def test_any_number_of_processes_gives_the_same_tables_and_metrics(root, world):
    run_base(world, root / f"w{world}")
    folders = (root / "one", root / f"w{world}")
    expected, metrics = (json.loads((f / "metrics.json").read_text()) for f in folders)
    assert expected.keys() == metrics.keys()
    for name in expected:
        kind = MultiLabelTable if name.startswith("findings") else PredictionTable
        one, several = (kind.read(f / f"{name}.parquet") for f in folders)
        np.testing.assert_array_equal(one.labels, several.labels)
        assert one.rows["id"].tolist() == several.rows["id"].tolist()
        np.testing.assert_allclose(one.probabilities, several.probabilities, atol=1e-6)
        for key, value in expected[name].items():
            assert metrics[name][key] == pytest.approx(value, abs=1e-6, nan_ok=True)
    assert len(expected) == 3 * len(SIZES)


def test_samples_repeated_by_the_default_sampler_are_an_error(root):
    with pytest.raises(ValueError, match="occurs twice"):
        run_base(2, root / "padded", "padded")


def plain_trainer(folder):
    """Lightning's trainer with its own callbacks and loggers."""
    return lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=1, default_root_dir=folder,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip


def test_a_limited_test_notes_how_many_images_were_evaluated(tmp_path):
    data = ImageDataModule(
        Phantoms("fracture", 40, 1, 32, root=str(tmp_path)), CLASSES, Preprocess(size=32),
        batch_size=2, num_workers=0,
    )  # fmt: skip
    module = ImageClassifier(CLASSES, "test_resnet", image_size=32)
    notes = []
    for limit in (2, 1.0):
        trainer = plain_trainer(tmp_path)
        trainer.limit_test_batches = limit
        trainer.test(module, data, verbose=False)
        notes.append(module.tables["test"][""].meta["notes"])
    count = len(module.split_ids("test"))
    note = f"4 of {count} images of the test split were evaluated: the number of batches is limited"
    assert notes == [[note], []]


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


@pytest.mark.parametrize(("module_class", "options"), [
    (ImageClassifier, {}), (ImageClassifier, {"head": "sigmoid"}),
    (ImageClassifier, {"head": "ordinal"}), (OneVsOneClassifier, {}),
    (ImageClassifier, {"head": "multi_label"}),
])  # fmt: skip
def test_the_trained_loss_is_recorded_on_val_in_a_fit(module_class, options, tmp_path):
    classes = CLASSES[:2] if options.get("head") == "sigmoid" else CLASSES
    images, labels = torch.rand(12, 3, 32, 32), torch.arange(12) % len(classes)
    if options.get("head") == "multi_label":
        labels = torch.randint(-1, 2, (12, 3), generator=torch.Generator().manual_seed(0))
    samples = [{"image": x, "label": y, "index": i}
               for i, (x, y) in enumerate(zip(images, labels, strict=True))]  # fmt: skip
    loader = DataLoader(samples, batch_size=5)
    loss = LossConfig("focal", label_smoothing=0.1)
    module = module_class(classes, "test_resnet", loss=loss, **options)
    plain_trainer(tmp_path).fit(module, loader, loader)
    with torch.inference_mode():
        expected = module.compute_loss(module.eval().net(images), labels, None)
    assert module.metrics["val"]["training_loss"] == pytest.approx(float(expected), rel=1e-5)
    assert module.metrics["val"]["loss"] != pytest.approx(float(expected), rel=0.01)


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
