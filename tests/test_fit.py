import json
import re
import shutil
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import lightning as L
import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from consilium.cli.main import main
from consilium.inference.data_config import load_datamodule
from datamodules.images import read_image
from evaluation.metrics.conformal import fit_conformal_sets
from evaluation.predictions import SETS, PredictionTable, aggregate
from evaluation.results import read_results
from lightning_modules import backbones, checkpoints
from lightning_modules.base import EPOCH_METRICS
from tests.user_classes import BatchCounter

CLASSES = ["none", "simple", "comminuted"]
RECIPES = Path(__file__).parents[1] / "configs/recipe"


def test_run_folder_has_all_files(resnet):
    for name in ("config.yaml", "best.ckpt", "last.ckpt", "history.csv", "results.json",
                 "results.val.json", "report.html", "predictions/val.parquet",
                 "predictions/test.parquet"):  # fmt: skip
        assert (resnet / name).is_file(), name
    history = pd.read_csv(resnet / "history.csv")
    assert history["epoch"].tolist() == [0, 1]
    assert {"lr", "train/loss", "train/accuracy"} <= set(history)
    columns = [name for name in history if "val/" in name]
    assert columns == [f"val/{name}" for name in EPOCH_METRICS]


def test_fit_evaluates_val_and_test_only_when_asked(tiny, tmp_path):
    run = tmp_path / "run"
    assert main(["fit", *tiny.configs("untested"), "--run", str(run)]) == 0
    assert read_results(run / "results.val.json").split == "val"
    assert (run / "report.val.html").is_file()
    assert not (run / "results.json").exists()
    assert not (run / "predictions" / "test.parquet").exists()
    assert main(["fit", *tiny.configs("untested"), "--run", str(run)]) == 2  # is finished
    assert main(["test", "--config", str(run / "config.yaml"), "--run", str(run)]) == 0
    assert read_results(run / "results.json").split == "test"


def test_a_fit_removes_what_a_killed_one_left_of_its_checkpoints(tiny, tmp_path):
    left, other = (tmp_path / "run" / f".last.ckpt.{name}" for name in ("865a7d20", "notes"))
    left.parent.mkdir()
    left.touch()
    other.touch()
    tiny.fit("killed", tmp_path / "run")
    assert not left.exists()
    assert other.exists()


def test_a_named_group_of_classes_is_in_results_and_report(tiny, tmp_path, capsys):
    key = "data.init_args.clinical_use"
    use = {"class_groups": {"fracture": ["simple", "comminuted"]}, "prevalences": [0.25]}
    run = tiny.fit("grouped", tmp_path / "run", **{key: use, "trainer.max_epochs": 1})
    results = read_results(run / "results.json")
    assert {"auroc/fracture", "net_benefit/fracture", "calibration_slope/fracture",
            "ppv_at_prevalence/simple/0.25"} <= set(results.metrics)  # fmt: skip
    assert list(results.operating_points) == ["fracture", *CLASSES]
    sensitivity = results.operating_points["fracture"]["0.5"]["recall/fracture"]
    table = PredictionTable.read(run / "predictions" / "test.parquet")
    assert sensitivity.n == (table.labels > 0).sum()
    page = (run / "report.html").read_text()
    for heading in ("Decision thresholds for fracture", "Each class against the others",
                    "Decision curves", "Calibration curves", "Referral",
                    "Prediction sets"):  # fmt: skip
        assert f"<h2>{heading}</h2>" in page
    use = {"class_groups": {"fracture": ["simple", "dislocated"]}}
    assert main(["fit", *tiny.configs("wrong", **{key: use}), "--run", str(tmp_path / "no")]) == 2
    assert "clinical_use: class_groups: fracture: ['simple', 'disloc" in capsys.readouterr().err
    assert not (tmp_path / "no" / "history.csv").exists()


def test_own_subclass_loss_callback_and_logger_work_from_a_config(tiny, tmp_path):
    before = BatchCounter.batches
    run = tiny.fit("own", tmp_path / "run", **{
        "model.class_path": "tests.user_classes.ScaledClassifier",
        "model.init_args.loss": {"name": "tests.user_classes.hinge_loss", "args": {"margin": 2.0}},
        "trainer.callbacks+": [{"class_path": "tests.user_classes.BatchCounter"}],
        "trainer.logger": {"class_path": "lightning.pytorch.loggers.TensorBoardLogger",
                           "init_args": {"save_dir": str(tmp_path / "logs")}},
        "trainer.max_epochs": 1})  # fmt: skip
    assert BatchCounter.batches > before
    assert read_results(run / "results.json").split == "test"
    assert checkpoints.read(run / "best.ckpt")[0].module == "ScaledClassifier"
    assert [file for file in (tmp_path / "logs").rglob("*") if file.is_file()]


def test_test_reproduces_the_metrics_of_fit(resnet, tmp_path, capsys):
    args = ["--config", str(resnet / "config.yaml"), "--ckpt_path", str(resnet / "best.ckpt")]
    assert main(["test", *args, "--run", str(tmp_path / "again")]) == 0
    first, second = (read_results(run / "results.json") for run in (resnet, tmp_path / "again"))
    assert first.metrics == second.metrics
    assert f"{second.metrics['accuracy'].value:.2f}" in capsys.readouterr().out


def test_best_checkpoint_of_the_run_is_the_default(resnet, tmp_path, capsys):
    run, results = shutil.copytree(resnet, tmp_path / "run"), read_results(resnet / "results.json")
    args = ["--config", str(run / "config.yaml"), "--run"]
    for folder in (run, tmp_path / "elsewhere"):
        assert main(["test", *args, str(folder)]) == 0
        assert f"checkpoint: {run}/best.ckpt\n" in capsys.readouterr().out
        assert read_results(folder / "results.json").metrics == results.metrics
    assert main(["predict", *args, str(tmp_path / "predicted")]) == 0
    table = tmp_path / "predicted/predictions/test.parquet"
    assert f"predictions: {table}\n" in capsys.readouterr().out
    assert PredictionTable.read(table).meta["weights"] == results.meta["weights"]


def test_predictions_have_the_sets_that_are_fitted_on_val(resnet, tmp_path, capsys):
    args = ["predict", "--config", str(resnet / "config.yaml"), "--run", str(tmp_path / "sets")]
    assert main([*args, "--sets", "0.8"]) == 0
    table = PredictionTable.read(tmp_path / "sets/predictions/test.parquet")
    val = PredictionTable.read(resnet / "predictions/val.parquet")
    sets = fit_conformal_sets(val, 0.2, "class")
    names = [[name for name, is_in in zip(table.class_names, row, strict=True) if is_in]
             for row in sets.of_table(table)]  # fmt: skip
    assert [text.split(", ") for text in table.rows[SETS]] == [of or [""] for of in names]
    written = yaml.safe_load((tmp_path / "sets/config.yaml").read_text())
    assert not {"sets", "verbose"} & written.keys()  # other commands read it
    assert SETS not in table.attributes
    assert SETS not in aggregate(table, "patient").rows
    assert main([*args, "--sets", "1.5"]) == 2
    assert "--sets 1.5: must be between 0 and 1" in last_line(capsys)
    shutil.copytree(resnet, tmp_path / "run", ignore=shutil.ignore_patterns("val.parquet"))
    (tmp_path / "sets/predictions/test.parquet").unlink()
    args[2] = str(tmp_path / "run/config.yaml")
    assert main([*args, "--sets", "0.8"]) == 2
    assert "--sets: no val predictions in " in last_line(capsys)
    assert not (tmp_path / "sets/predictions/test.parquet").exists()


def last_line(capsys) -> str:
    """The error, which is one line."""
    [line] = [li for li in capsys.readouterr().err.splitlines() if li.startswith("consilium ")]
    return line


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_untrained_weights_are_not_evaluated(tiny, resnet, tmp_path, capsys, command):
    run = tmp_path / "run"
    assert main([command, *tiny.configs("untrained"), "--run", str(run)]) == 2
    assert f"--ckpt_path: required, as {run} has no best.ckpt" in capsys.readouterr().err
    assert not run.exists()
    shutil.copytree(resnet, run)
    assert main([command, "--config", str(resnet / "config.yaml"), "--run", str(run)]) == 2
    assert f"give one of {run}/best.ckpt, {resnet}/best.ckpt" in capsys.readouterr().err


OTHER_PREPROCESS = ["--data.init_args.preprocess.size", "48",
                    "--data.init_args.preprocess.mean", "[0.0, 0.0, 0.0]"]  # fmt: skip


@pytest.mark.parametrize("command", ["test", "validate", "predict"])
def test_another_preprocessing_than_the_checkpoints_is_refused(resnet, tmp_path, capsys, command):
    args = ["--config", str(resnet / "config.yaml"), "--run", str(tmp_path), *OTHER_PREPROCESS]
    assert main([command, *args]) == 2
    error = capsys.readouterr().err
    assert "checkpoint: trained with size 32, the config has 48; with mean [0.485" in error
    assert "--allow_other_preprocess true" in error
    assert not (tmp_path / "predictions").exists()


def test_another_preprocessing_that_is_allowed_stands_in_every_report(resnet, tmp_path):
    args = ["--config", str(resnet / "config.yaml"), "--run", str(tmp_path), *OTHER_PREPROCESS]
    assert main(["test", *args, "--allow_other_preprocess", "true"]) == 0
    note = "Preprocessing differs from the training: trained with size 32, the config has 48"
    for file in ("results.json", "report.html", "README.md"):
        assert note in (tmp_path / file).read_text(), file
    assert note in str(PredictionTable.read(tmp_path / "predictions/test.parquet").meta["notes"])
    assert note not in (resnet / "report.html").read_text()


def test_a_report_has_the_date_and_the_versions_that_made_it(resnet):
    page = (resnet / "report.html").read_text()
    for text in (f"timm {version('timm')}", f"torchvision {version('torchvision')}"):
        assert text in page
    assert f"<td>date</td><td>{date.today().isoformat()}</td>" in page


def test_only_validate_writes_a_report_of_val_beside_that_of_test(resnet, tmp_path):
    run = shutil.copytree(resnet, tmp_path / "run")
    assert not (run / "report.val.html").exists()
    before = (run / "report.html").read_bytes()
    args = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "best.ckpt")]
    assert main(["validate", *args, "--run", str(run)]) == 0
    assert (run / "report.html").read_bytes() == before
    assert b"test split" in before
    assert "val split" in (run / "report.val.html").read_text()


def test_checkpoint_loads_without_its_config(resnet, tmp_path):
    copy = shutil.copy(resnet / "best.ckpt", tmp_path / "copy.ckpt")
    module, block = checkpoints.load(copy)
    table = PredictionTable.read(resnet / "predictions" / "test.parquet")
    assert block.class_names == ["none", "simple", "comminuted"]
    assert block.preprocess["size"] == 32
    assert block.weights == block.measured_weights == table.meta["weights"]
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_changed_weights_are_refused(resnet, tmp_path):
    content = torch.load(resnet / "best.ckpt", weights_only=True)
    next(iter(content["state_dict"].values())).mul_(1.001)
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.raises(checkpoints.CheckpointError, match="do not have the hash"):
        checkpoints.load(tmp_path / "changed.ckpt")


def test_half_precision_trains_and_epochs_without_validation_have_no_val_metrics(tiny, tmp_path):
    changes = {"trainer.precision": "bf16-true", "trainer.max_epochs": 3,
            "trainer.check_val_every_n_epoch": 2}  # fmt: skip
    assert main(["fit", *tiny.configs("half", **changes), "--run", str(tmp_path)]) == 0
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["val/loss"].notna().tolist() == [False, True, False]
    assert history["train/loss"].notna().all()
    assert read_results(tmp_path / "results.val.json").meta["precision"] == "bf16-true"
    _, state = checkpoints.read(tmp_path / "best.ckpt")
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.bfloat16}


def other_splits(tiny, test=0.8, **changes):
    """Config with other splits of the same images; a large test split has training images."""
    source = {"class_path": "datamodules.Phantoms", "init_args": {
        "kind": "fracture", "num_patients": 30, "images_per_patient": 2, "image_size": 64,
        "root": str(tiny.root / "phantoms"), "val": 0.1, "test": test}}  # fmt: skip
    return tiny.configs("other_splits", **{"data.init_args.source": source}, **changes)


@pytest.mark.parametrize("command", ["test", "predict"])
def test_training_images_are_refused_in_the_test_split(tiny, resnet, tmp_path, capsys, command):
    checkpoint = ["--ckpt_path", str(resnet / "best.ckpt"), "--run", str(tmp_path)]
    assert main([command, *other_splits(tiny), *checkpoint]) != 0
    assert "training samples of this checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "predictions").exists()


def write_test_data(tmp_path, resnet, shift, prefix=""):
    """A test set of the training images by the same names, with the prefix, their colors shifted.

    Returns the arguments of a test, and the number of images.
    """
    manifest = load_datamodule([str(resnet / "config.yaml")]).load_manifest()
    table = manifest.table.query("split == 'train'")
    rows = table.assign(split="test", path=prefix + table["id"])
    for old, new in zip(table["path"], rows["path"], strict=True):
        file = tmp_path / new
        file.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(old, file)
        if shift:
            Image.fromarray(read_image(old) + np.uint8(shift)).save(file)
    rows[["path", "label", "split"]].to_csv(tmp_path / "other.csv", index=False)
    source = {
        "class_path": "datamodules.Table",
        "init_args": {"files": str(tmp_path / "other.csv")},
    }
    settings = {"source": source, "class_names": CLASSES, "preprocess": {"size": 32}}
    content = {"class_path": "datamodules.ImageDataModule", "init_args": settings}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    data = ["--data", str(tmp_path / "other.yaml"), "--data.num_workers", "0"]
    run = ["--ckpt_path", str(resnet / "best.ckpt"), "--run", str(tmp_path / "run")]
    arguments = ["test", "--config", str(resnet / "config.yaml"), *data, *run]
    return arguments, len(rows)


def test_other_images_with_the_names_of_training_images_are_tested(resnet, tmp_path):
    arguments, count = write_test_data(tmp_path, resnet, shift=1)
    assert main(arguments) == 0
    assert len(PredictionTable.read(tmp_path / "run/predictions/test.parquet").rows) == count


def test_training_images_by_other_names_are_refused(resnet, tmp_path, capsys):
    arguments, count = write_test_data(tmp_path, resnet, shift=0, prefix="renamed-")
    assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{count} of the samples to be tested are training samples of this checkpoint" in line
    assert f"leave such files out, as {tmp_path}/renamed-" in line
    assert "data.init_args.exclude" in line


def test_val_images_of_the_training_are_refused_in_the_test_split(tiny, resnet, tmp_path, capsys):
    content = torch.load(resnet / "best.ckpt", weights_only=True)
    block = content["consilium"] | {"train_ids": torch.empty(0, dtype=torch.int64)}
    content["consilium"] = checkpoints.block_with_digest(block)
    torch.save(content, tmp_path / "no_train_ids.ckpt")
    checkpoint = [
        "--ckpt_path",
        str(tmp_path / "no_train_ids.ckpt"),
        "--run",
        str(tmp_path / "run"),
    ]
    assert main(["test", *other_splits(tiny), *checkpoint]) != 0
    assert "of the samples to be tested are val samples" in capsys.readouterr().err
    assert main(["validate", *tiny.configs("same"), *checkpoint]) == 0  # allowed for val


def test_training_ids_of_a_warm_start_are_recorded(tiny, resnet, tmp_path):
    start = {"class_path": "callbacks.WarmStart",
             "init_args": {"checkpoint": str(resnet / "best.ckpt")}}  # fmt: skip
    changes = {"data.init_args.balance": {"max_per_class": 2}, "trainer.callbacks+": [start],
           "trainer.max_epochs": 1}  # fmt: skip
    assert main(["fit", *tiny.configs("few", **changes), "--run", str(tmp_path)]) == 0
    before, after = (checkpoints.read(run / "best.ckpt")[0] for run in (resnet, tmp_path))
    assert torch.equal(after.train_ids, before.train_ids)


@pytest.mark.parametrize("command", ["test", "predict"])
def test_ensemble_refuses_training_images_of_its_members(tiny, resnet, tmp_path, capsys, command):
    ensemble = {"class_path": "lightning_modules.EnsembleModule",
               "init_args": {"members": [str(resnet)]}}  # fmt: skip
    assert main([command, *other_splits(tiny, model=ensemble), "--run", str(tmp_path)]) != 0
    assert "member 'resnet': " in capsys.readouterr().err


def test_training_images_can_be_predicted_as_the_train_split(tiny, resnet, tmp_path):
    configs = tiny.configs("predict_train", **{"data.init_args.predict_split": "train"})
    checkpoint = ["--ckpt_path", str(resnet / "best.ckpt"), "--run", str(tmp_path)]
    assert main(["predict", *configs, *checkpoint]) == 0
    assert PredictionTable.read(tmp_path / "predictions" / "train.parquet").splits == ["train"]


def test_resuming_with_other_splits_is_refused(tiny, resnet, tmp_path, capsys):
    resume = ["--ckpt_path", str(resnet / "last.ckpt"), "--run", str(tmp_path / "run")]
    assert main(["fit", *other_splits(tiny, 0.3, **{"trainer.max_epochs": 3}), *resume]) != 0
    assert "checkpoint: was trained on another manifest" in capsys.readouterr().err
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_fit_whose_last_checkpoint_is_damaged_starts_anew_unless_it_was_finished(
    tiny, resnet, tmp_path, capsys
):
    run = tmp_path / "run"
    shutil.copytree(resnet, run)
    (run / "last.ckpt").write_bytes((run / "last.ckpt").read_bytes()[:1000])
    fit = ["fit", *tiny.configs("resnet"), "--run", str(run), "--ckpt_path", "last"]
    assert main(fit) == 2
    problem = f"{run}/last.ckpt: truncated, or not a checkpoint (no zip archive of torch)"
    finished = f"--run {run}: contains a finished run; give another --run, or remove the folder"
    assert capsys.readouterr().err == f"consilium fit: {problem}; {finished}\n"
    for name in ("results.json", "results.val.json"):
        (run / name).unlink()
    assert main(fit) == 0
    assert f"{problem}; training starts anew\n" in capsys.readouterr().out
    assert not (run / "previous.ckpt").exists()
    for name in ("best.ckpt", "last.ckpt"):
        expected, weights = (checkpoints.read(r / name)[1] for r in (resnet, run))
        assert all(torch.equal(expected[key], weights[key]) for key in expected)


@pytest.mark.parametrize(("setting", "message"), [
    ("optimizer.lr=0.5", "with optimizer.lr 0.002, the config has 0.5"),
    ("lr_scheduler.name=step", "with lr_scheduler.name 'cosine', the config has 'step'"),
    *(pytest.param(setting, f"the config has {setting[-3:]}", marks=pytest.mark.exhaustive)
      for setting in ("optimizer.weight_decay=0.3", "fine_tuning.layer_decay=0.5",
                      "loss.label_smoothing=0.2")),
])  # fmt: skip
def test_resuming_with_other_training_settings_is_refused(
    tiny, resnet, tmp_path, capsys, setting, message
):
    """An optimizer restores its own lr and weight decay, so others would only be recorded."""
    resume = ["--ckpt_path", str(resnet / "last.ckpt"), "--run", str(tmp_path / "run")]
    configs = tiny.configs("longer", **{"trainer.max_epochs": 3})
    assert main(["fit", *configs, *resume, f"--model.init_args.{setting}"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "callbacks.WarmStart" in error
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_plateau_scheduler_lowers_the_learning_rate(tiny, tmp_path):
    """The learning rate is too small for any improvement, so it is reduced again and again."""
    plateau = {"name": "plateau", "patience": 1, "gamma": 0.1}
    run = tiny.fit("plateau", tmp_path / "run", **{
        "trainer.max_epochs": 6, "model.init_args.optimizer": {"name": "sgd", "lr": 1e-12},
        "model.init_args.lr_scheduler": plateau})  # fmt: skip
    rates = pd.read_csv(run / "history.csv")["lr"]
    assert rates.iloc[-1] < 0.2 * rates.iloc[0]


@pytest.mark.parametrize("limit", ["max_steps=2", "limit_val_batches=0"])
def test_a_fit_without_validation_ends_with_its_last_checkpoint(tiny, tmp_path, capsys, limit):
    fit = ["fit", *tiny.configs("unvalidated"), "--run", str(tmp_path), f"--trainer.{limit}"]
    assert main(fit) == 0
    assert f"no validation, hence no {tmp_path}/best.ckpt" in capsys.readouterr().out
    assert (tmp_path / "last.ckpt").is_file()
    assert not (tmp_path / "best.ckpt").exists()


def test_a_normalization_unlike_that_of_pretrained_weights_is_a_warning_in_the_report(
    tiny, tmp_path
):
    """timm's test_resnet was trained with mean and std 0.5, the data has those of ImageNet."""
    net = backbones.build("test_resnet", 3, channels_last=False)
    save_file(net.state_dict(), tmp_path / "weights.safetensors")
    changes = {"model.init_args.pretrained": str(tmp_path / "weights.safetensors"),
               "trainer.max_epochs": 1}  # fmt: skip
    with pytest.warns(UserWarning, match="timm records mean"):
        run = tiny.fit("normalized", tmp_path / "run", **changes)
    for file in ("results.json", "results.val.json", "report.html"):
        note = (
            r"records mean \[0.5, 0.5, 0.5\] .* for pretrained weights of test_resnet; "
            r"preprocess has mean \[0.485"
        )
        assert re.search(note, (run / file).read_text()), file


def test_a_checkpoint_is_tested_although_its_pretrained_weights_are_gone(tiny, tmp_path, capsys):
    weights, run = tmp_path / "weights.safetensors", tmp_path / "run"
    save_file(backbones.build("test_resnet", 3, channels_last=False).state_dict(), weights)
    tiny.fit("moved", run, **{"model.init_args.pretrained": str(weights), "trainer.max_epochs": 1})
    before = json.loads((run / "results.json").read_text())["metrics"]
    weights.unlink()
    assert main(["test", "--config", str(run / "config.yaml"), "--run", str(tmp_path / "again"),
                 "--ckpt_path", str(run / "best.ckpt")]) == 0  # fmt: skip
    assert f"{weights} is gone; the checkpoint has all weights" in capsys.readouterr().out
    assert json.loads((tmp_path / "again/results.json").read_text())["metrics"] == before


@pytest.mark.exhaustive
def test_early_stopped_run_trains_no_epoch_when_resumed(tiny, tmp_path):
    """No epoch improves by 10, so two are trained; resuming adds no third."""
    changes = {"early_stopping": {"patience": 1, "min_delta": 10.0}, "trainer.max_epochs": 4}
    run = tiny.fit("stopped", tmp_path / "run", **changes)
    results = (run / "results.json").read_text()
    (run / "results.json").unlink()
    resume = ["--run", str(run), "--test", "true", "--ckpt_path", str(run / "last.ckpt")]
    assert main(["fit", *tiny.configs("stopped", **changes), *resume]) == 0
    assert pd.read_csv(run / "history.csv")["epoch"].tolist() == [0, 1]
    assert (run / "results.json").read_text() == results


def run_folder_files(run):
    return {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}


@pytest.mark.parametrize("density", [None, 0.25])
def test_debug_recipe_tests_and_reports_and_keeps_no_file(tiny, tmp_path, capsys, density):
    sparse = {"class_path": "callbacks.TwoStageSparseTraining",
              "init_args": {"density": 0.25, "dense_epochs": 6, "sparse_epochs": 4}}  # fmt: skip
    changes = {"trainer.callbacks+": [sparse], "trainer.max_epochs": 10} if density else {}
    configs = [*tiny.configs("debug", **changes), "--config", str(RECIPES / "debug.yaml")]
    run = tmp_path / "run"
    assert main(["fit", *configs, "--run", str(run)]) == 0
    output = capsys.readouterr().out
    assert "val split" in output
    assert "test split" in output
    assert not run.exists()


def test_debug_recipe_leaves_a_finished_run_as_it_is(tiny, resnet, tmp_path):
    run = shutil.copytree(resnet, tmp_path / "run")
    before = run_folder_files(run)
    configs = [*tiny.configs("debug"), "--config", str(RECIPES / "debug.yaml")]
    assert main(["fit", *configs, "--run", str(run)]) == 0
    assert main(["test", *configs, "--run", str(run)]) == 0
    assert run_folder_files(run) == before


class IndexRecorder(L.Callback):
    """Records the rows of every training batch."""

    epochs: ClassVar[list[list[int]]] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs[-1] += batch["index"].tolist()


def test_overfit_recipe_repeats_four_mixed_batches(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr("tests.user_classes.IndexRecorder", IndexRecorder, raising=False)
    changes = {"trainer.callbacks+": [{"class_path": "tests.user_classes.IndexRecorder"}]}
    options = ["--config", str(RECIPES / "overfit.yaml"), "--trainer.max_epochs", "3"]
    IndexRecorder.epochs.clear()
    tiny.fit("overfit", tmp_path / "run", *options, **changes)
    first, second, third = IndexRecorder.epochs
    assert first == second == third
    assert len(set(first)) == len(first)
    predictions = PredictionTable.read(tmp_path / "run/predictions/val.parquet")
    assert 0 < len(predictions.labels) <= 32


@pytest.mark.exhaustive
def test_overfit_recipe_brings_the_loss_near_zero(tiny, tmp_path):
    run = tiny.fit("overfit", tmp_path / "run", "--config", str(RECIPES / "overfit.yaml"))
    history = pd.read_csv(run / "history.csv")
    assert history["train/loss"].iloc[-1] < 0.1 * history["train/loss"].iloc[0]
