import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from consilium.cli.main import main
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from lightning_modules import checkpoints
from lightning_modules.base import FIGURES


def test_run_folder_is_complete(resnet):
    for name in ("config.yaml", "best.ckpt", "last.ckpt", "history.csv", "results.json",
                 "report.html", "predictions/val.parquet", "predictions/test.parquet"):  # fmt: skip
        assert (resnet / name).is_file(), name
    history = pd.read_csv(resnet / "history.csv")
    assert history["epoch"].tolist() == [0, 1]
    assert {"lr", "train/loss", "train/accuracy"} <= set(history)
    assert [name for name in history if "val/" in name] == [f"val/{name}" for name in FIGURES]


def test_test_gives_the_figures_that_fit_printed(resnet, tmp_path, capsys):
    args = ["--config", str(resnet / "config.yaml"), "--ckpt_path", str(resnet / "best.ckpt")]
    assert main(["test", *args, "--run", str(tmp_path / "again")]) == 0
    first, again = (read_results(run / "results.json") for run in (resnet, tmp_path / "again"))
    assert first.metrics == again.metrics
    assert f"{again.metrics['accuracy'].value:.4f}" in capsys.readouterr().out


def test_without_a_checkpoint_the_best_of_the_run_is_measured(resnet, tmp_path, capsys):
    run, kept = shutil.copytree(resnet, tmp_path / "run"), read_results(resnet / "results.json")
    args = ["--config", str(run / "config.yaml"), "--run"]
    for where in (run, tmp_path / "elsewhere"):
        assert main(["test", *args, str(where)]) == 0
        assert f"checkpoint: {run}/best.ckpt\n" in capsys.readouterr().out
        assert read_results(where / "results.json").metrics == kept.metrics
    assert main(["predict", *args, str(tmp_path / "said")]) == 0
    table = tmp_path / "said/predictions/test.parquet"
    assert f"predictions: {table}\n" in capsys.readouterr().out
    assert PredictionTable.read(table).meta["weights"] == kept.meta["weights"]


@pytest.mark.parametrize("verb", ["test", "validate", "predict"])
def test_random_weights_are_not_measured(tiny, resnet, tmp_path, capsys, verb):
    run = tmp_path / "run"
    assert main([verb, *tiny.configs("unfitted"), "--run", str(run)]) == 2
    assert f"--ckpt_path: give one; {run} holds no best.ckpt" in capsys.readouterr().err
    assert not run.exists()
    shutil.copytree(resnet, run)
    assert main([verb, "--config", str(resnet / "config.yaml"), "--run", str(run)]) == 2
    assert f"{run}/best.ckpt or {resnet}/best.ckpt? say which" in capsys.readouterr().err


def test_the_report_of_val_is_not_drawn_over_that_of_test(resnet, tmp_path):
    run = shutil.copytree(resnet, tmp_path / "run")
    before = (run / "report.html").read_bytes()
    args = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "best.ckpt")]
    assert main(["validate", *args, "--run", str(run)]) == 0
    assert (run / "report.html").read_bytes() == before
    assert b"test split" in before
    assert "val split" in (run / "report.val.html").read_text()


def test_a_checkpoint_is_read_without_yaml(resnet, tmp_path):
    alone = shutil.copy(resnet / "best.ckpt", tmp_path / "alone.ckpt")
    module, block = checkpoints.load(alone)
    table = PredictionTable.read(resnet / "predictions" / "test.parquet")
    assert block.class_names == ["none", "simple", "comminuted"]
    assert block.preprocess["size"] == 32
    assert block.weights == block.measured_weights == table.meta["weights"]
    assert module(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def test_changed_weights_are_found_out(resnet, tmp_path):
    content = torch.load(resnet / "best.ckpt", weights_only=True)
    next(iter(content["state_dict"].values())).view(-1)[0] += 1e-3
    torch.save(content, tmp_path / "changed.ckpt")
    with pytest.raises(checkpoints.CheckpointError, match="do not have the hash"):
        checkpoints.load(tmp_path / "changed.ckpt")


def test_half_precision_trains_and_an_epoch_without_val_has_no_figures_of_it(tiny, tmp_path):
    rare = {"trainer.precision": "bf16-true", "trainer.max_epochs": 3,
            "trainer.check_val_every_n_epoch": 2}  # fmt: skip
    assert main(["fit", *tiny.configs("half", **rare), "--run", str(tmp_path)]) == 0
    history = pd.read_csv(tmp_path / "history.csv")
    assert history["val/loss"].notna().tolist() == [False, True, False]
    assert history["train/loss"].notna().all()
    _, state = checkpoints.read(tmp_path / "best.ckpt")
    assert {t.dtype for t in state.values() if t.is_floating_point()} == {torch.bfloat16}


def moved(tiny, test=0.8, **changes):
    """Another split of the same pictures; so large a test split holds training pictures."""
    source = {"class_path": "datamodules.Phantoms", "init_args": {
        "kind": "fracture", "patients": 30, "films": 2, "size": 64,
        "root": str(tiny.root / "phantoms"), "val": 0.1, "test": test}}  # fmt: skip
    return tiny.configs("moved", **{"data.init_args.source": source}, **changes)


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_nobody_is_tested_on_training_images(tiny, resnet, tmp_path, capsys, verb):
    checkpoint = ["--ckpt_path", str(resnet / "best.ckpt"), "--run", str(tmp_path)]
    assert main([verb, *moved(tiny), *checkpoint]) != 0
    assert "training samples of this checkpoint" in capsys.readouterr().err
    assert not (tmp_path / "predictions").exists()


def test_nobody_is_tested_on_images_that_chose_the_epoch(tiny, resnet, tmp_path, capsys):
    content = torch.load(resnet / "best.ckpt", weights_only=True)
    content["consilium"]["train_ids"] = torch.empty(0, dtype=torch.int64)
    torch.save(content, tmp_path / "chosen.ckpt")
    checkpoint = ["--ckpt_path", str(tmp_path / "chosen.ckpt"), "--run", str(tmp_path / "run")]
    assert main(["test", *moved(tiny), *checkpoint]) != 0
    assert "of the samples to be tested are val samples" in capsys.readouterr().err
    assert main(["validate", *tiny.configs("same"), *checkpoint]) == 0  # val is what it is for


def test_what_the_first_weights_were_made_of_is_remembered(tiny, resnet, tmp_path):
    start = {"class_path": "callbacks.WarmStart",
             "init_args": {"start": str(resnet / "best.ckpt")}}  # fmt: skip
    few = {"data.init_args.balance": {"limit": 2}, "trainer.callbacks+": [start],
           "trainer.max_epochs": 1}  # fmt: skip
    assert main(["fit", *tiny.configs("few", **few), "--run", str(tmp_path)]) == 0
    before, after = (checkpoints.read(run / "best.ckpt")[0] for run in (resnet, tmp_path))
    assert torch.equal(after.train_ids, before.train_ids)


@pytest.mark.parametrize("verb", ["test", "predict"])
def test_no_ensemble_votes_on_its_members_training_images(tiny, resnet, tmp_path, capsys, verb):
    ensemble = {"class_path": "lightning_modules.EnsembleModule",
               "init_args": {"members": [str(resnet)]}}  # fmt: skip
    assert main([verb, *moved(tiny, model=ensemble), "--run", str(tmp_path)]) != 0
    assert "member 'resnet': " in capsys.readouterr().err


def test_training_images_may_be_predicted_as_such(tiny, resnet, tmp_path):
    configs = tiny.configs("seen", **{"data.init_args.predict_split": "train"})
    checkpoint = ["--ckpt_path", str(resnet / "best.ckpt"), "--run", str(tmp_path)]
    assert main(["predict", *configs, *checkpoint]) == 0
    assert PredictionTable.read(tmp_path / "predictions" / "train.parquet").splits == ["train"]


def test_a_fit_goes_on_with_its_own_splits_alone(tiny, resnet, tmp_path, capsys):
    resume = ["--ckpt_path", str(resnet / "last.ckpt"), "--run", str(tmp_path / "run")]
    assert main(["fit", *moved(tiny, 0.3, **{"trainer.max_epochs": 3}), *resume]) != 0
    assert "checkpoint: was trained on another manifest" in capsys.readouterr().err
    assert not (tmp_path / "run" / "last.ckpt").exists()


def test_a_plateau_lowers_the_rate(tiny, tmp_path):
    """A figure that cannot improve: the rate falls after each validation that is waited for."""
    stuck = {"schedule": "plateau", "every": 1, "factor": 0.1, "lr": 1e-12, "optimizer": "sgd"}
    run = tiny.fit("plateau", tmp_path / "run", **{
        "trainer.max_epochs": 6, "model.init_args.optimization": stuck})  # fmt: skip
    rates = pd.read_csv(run / "history.csv")["lr"]
    assert rates.iloc[-1] < 0.2 * rates.iloc[0]


def test_a_run_that_had_stopped_early_stays_stopped_when_it_goes_on(tiny, tmp_path):
    """No epoch gains 10, so two are trained; a resume must not add a third."""
    stopping = {"early_stopping": {"patience": 1, "min_delta": 10.0}, "trainer.max_epochs": 4}
    run = tiny.fit("stopped", tmp_path / "run", **stopping)
    results = (run / "results.json").read_text()
    (run / "results.json").unlink()
    resume = ["--run", str(run), "--ckpt_path", str(run / "last.ckpt")]
    assert main(["fit", *tiny.configs("stopped", **stopping), *resume]) == 0
    assert pd.read_csv(run / "history.csv")["epoch"].tolist() == [0, 1]
    assert (run / "results.json").read_text() == results


def test_the_debug_recipe_goes_through_one_batch_of_everything(tiny, tmp_path):
    recipe = Path(__file__).parents[1] / "configs/recipe/debug.yaml"
    tiny.fit("debug", tmp_path / "run", "--config", str(recipe))
    assert not (tmp_path / "run" / "best.ckpt").exists()
