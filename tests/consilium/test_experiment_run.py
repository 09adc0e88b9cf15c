"""A trained experiment: its files, a killed and resumed run, a failed member."""

import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from consilium.cli.main import main
from consilium.experiments import provenance
from consilium.experiments.run import FAILED, Run
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from lightning_modules import checkpoints
from tests.conftest import ROOT
from tests.consilium.test_run_lock import ENDLESS, wait_for_first_epoch


def test_the_folder_is_complete(experiment):
    for name in ("report.html", "results.json", "experiment.log", "ensemble/ensemble.json",
                 "ensemble/results.json", "members/small/best.ckpt"):  # fmt: skip
        assert (experiment / name).is_file(), name
    results = read_results(experiment / "results.json")
    assert results.gates == {"ensemble.accuracy": True, "members.auroc": False}
    assert set(results.others) == {"ensemble", "small", "large"}


@pytest.mark.parametrize("member", ["small", "large"])
def test_a_member_has_the_same_metrics_alone_and_in_the_ensemble(experiment, member):
    alone = PredictionTable.read(experiment / "members" / member / "predictions/test.parquet")
    inside = PredictionTable.read(experiment / f"ensemble/predictions/test/{member}.parquet")
    assert alone.rows["id"].tolist() == inside.rows["id"].tolist()
    np.testing.assert_allclose(alone.logits, inside.logits, atol=1e-6)
    assert alone.meta["weights"] == inside.meta["weights"]
    metrics = [read_results(experiment / "members" / member / "results.json").metrics,
               read_results(experiment / "ensemble" / "results.json").others[member]]  # fmt: skip
    assert metrics[0]["accuracy"] == metrics[1]["accuracy"]
    assert metrics[0]["auroc"].value == pytest.approx(metrics[1]["auroc"].value, abs=1e-6)


def test_the_ensemble_predicts_the_calibrated_mean_of_its_members(experiment):
    small, large, ensemble = (
        PredictionTable.read(experiment / "ensemble" / "predictions" / name)
        for name in ("test/small.parquet", "test/large.parquet", "test.parquet")
    )
    voter = yaml.safe_load((experiment / "voters" / "voter.json").read_text())
    calibrated = ((small.probabilities + large.probabilities) / 2) ** (
        1 / voter["calibration"]["temperature"]
    )
    expected = calibrated / calibrated.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ensemble.probabilities, expected, atol=1e-6)
    from_tables = PredictionTable.read(experiment / "voters" / "predictions" / "test.parquet")
    np.testing.assert_allclose(ensemble.logits, from_tables.logits, atol=1e-5)


def test_the_ensemble_names_its_members_by_relative_paths(experiment):
    ensemble = yaml.safe_load((experiment / "ensemble" / "ensemble.json").read_text())
    for member in ensemble["members"].values():
        block, _ = checkpoints.read(experiment / "ensemble" / member["path"])
        assert block.weights == member["weights"]


def test_a_finished_experiment_is_not_run_again(experiment, experiment_file, capsys):
    before = (experiment / "experiment.log").read_text()
    assert main(["experiment", "run", str(experiment_file), "--output", str(experiment)]) == 1
    assert (experiment / "experiment.log").read_text() == before
    output = capsys.readouterr().out
    assert "gate members.auroc: FAIL" in output
    assert f"Report: {experiment / 'report.html'}" in output


def test_status_prints_one_line_per_run(experiment, experiment_file, capsys):
    assert main(["experiment", "status", str(experiment_file), "--output", str(experiment)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        [name, "done"] for name in ("large", "small", "voters", "ensemble")
    ]


def test_a_dry_run_prints_the_commands_and_writes_nothing(experiment_file, capsys):
    arguments = ["run", str(experiment_file), "--output", "elsewhere", "--dry-run"]
    assert main(["experiment", *arguments]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[:2] for line in lines] == [["consilium", "fit"]] * 2 + [
        ["consilium", "ensemble"],
        ["consilium", "test"],
    ]
    assert not Path("elsewhere").exists()


def test_an_ensemble_in_another_precision_than_its_members_is_refused_before_any_run(
    experiment_file, tmp_path, capsys
):
    content = yaml.safe_load(experiment_file.read_text())
    content["ensemble"] = ["ensemble.yaml", {"trainer.precision": "bf16-mixed"}]
    file = experiment_file.with_name("mixed_precision.yaml")
    file.write_text(yaml.safe_dump(content))
    assert main(["experiment", "run", str(file), "--output", str(tmp_path / "out")]) == 2
    message = "ensemble: trainer.precision: bf16-mixed, but the member large has 32-true"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.exhaustive
def test_a_failed_member_is_named_and_does_not_stop_the_others(tiny, tmp_path, capsys):
    tiny.member("broken", **{"data.init_args.augment": "frature"})
    tiny.member("quick", **{"trainer.max_epochs": 1})
    file = tiny.root / "broken_experiment.yaml"
    file.write_text(yaml.safe_dump({"base": str(ROOT / "configs/base.yaml"),
                    "members": {"broken": "broken.yaml", "quick": "quick.yaml"}}))  # fmt: skip
    assert main(["experiment", "run", str(file), "--output", str(tmp_path)]) == 1
    output = capsys.readouterr().out
    assert "broken failed: consilium fit: augment is 'frature'; allowed are" in output
    assert (tmp_path / "members" / "quick" / "results.json").is_file()
    assert main(["experiment", "status", str(file), "--output", str(tmp_path)]) == 0
    assert "broken           failed" in capsys.readouterr().out


def test_terminated_run_of_an_experiment_is_stopped_and_resumes(tiny, tmp_path):
    arguments = [*tiny.configs("endless"), "--run", str(tmp_path / "run"), "--test", "true"]
    fit = ["fit", *arguments, *ENDLESS]
    run = Run("run", tmp_path / "run", fit)
    assert run.start() == fit
    assert run.process is not None
    wait_for_first_epoch(run.process, run.folder)
    run.stop()
    assert run.process.returncode == 143
    assert run.error_message().startswith("consilium fit: stopped after epoch ")
    assert run.state().status == "stopped"
    assert not (run.folder / FAILED).exists()
    run.arguments[-1] = str(run.state().epoch)  # max_epochs, which changes the settings
    (run.folder / provenance.FILE).unlink()
    assert run.start() == [*fit, "--ckpt_path", str(run.folder / "last.ckpt")]
    run.wait()
    assert run.state().status == "done", run.error_message()
    assert read_results(run.folder / "results.json").split == "test"


def test_an_unknown_backbone_of_a_later_member_is_refused_before_anything_trains(
    tiny, tmp_path, capsys
):
    tiny.member("first")
    members = {"first": "first.yaml",
               "second": ["first.yaml", {"model.init_args.backbone": "resnet51"}]}  # fmt: skip
    file = tiny.root / "unknown_backbone.yaml"
    content = {"base": str(ROOT / "configs/base.yaml"), "members": members}
    file.write_text(yaml.safe_dump(content))
    assert main(["experiment", "run", str(file), "--output", str(tmp_path / "run")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    message = f"{file}: backbone: unknown name 'resnet51'; the nearest are: resnet51q,"
    assert line.startswith(f"consilium experiment: {message}")
    assert not (tmp_path / "run").exists()


@pytest.mark.exhaustive
def test_a_printed_command_typed_by_hand_fills_the_same_run_folder(
    experiment, experiment_file, tmp_path, capsys
):
    """The printed line in a shell; only the word consilium is this interpreter's."""
    args = ["experiment", "run", str(experiment_file), "--output", str(tmp_path), "--only", "large"]
    assert main([*args, "--dry-run"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    consilium = f'consilium() {{ {sys.executable} -m consilium "$@"; }}'
    shell = ["bash", "-c", f"{consilium}; {line}"]
    subprocess.run(shell, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    typed, started = tmp_path / "members/large", experiment / "members/large"
    assert files(typed) == files(started) - {"log.txt", ".done", ".provenance.json"}
    weights, expected = (checkpoints.read(folder / "best.ckpt")[1] for folder in (typed, started))
    assert all(torch.equal(expected[name], weights[name]) for name in expected)
    metrics = [read_results(folder / "results.json").metrics for folder in (typed, started)]
    assert metrics[0] == metrics[1]
    assert main(args) == 0  # the experiment trusts it: nothing is trained again
    assert not (tmp_path / "experiment.log").exists()


def files(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def progress(folder):
    """Progress of an experiment, independent of the machine's speed: files, and ten per epoch."""
    epochs = [len(file.read_text().splitlines()) - 1 for file in folder.rglob("history.csv")]
    return len(files(folder)) + 10 * sum(epochs)


def copy_experiment(experiment, tmp_path):
    """A copy whose ensemble has to be evaluated again."""
    folder = tmp_path / "copy"
    shutil.copytree(experiment, folder)
    (folder / "ensemble/results.json").unlink()
    return folder


def same_weights(one, other):
    states = [checkpoints.read(file)[1] for file in (one, other)]
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def remove_best(member):
    (member / "best.ckpt").unlink()


def truncate_last(member):
    """The state after a kill during the tests."""
    (member / "last.ckpt").write_bytes((member / "last.ckpt").read_bytes()[:1000])
    (member / ".done").unlink()


@pytest.mark.exhaustive
@pytest.mark.parametrize("damage", [remove_best, truncate_last])
def test_a_member_with_a_damaged_checkpoint_is_trained_anew(
    experiment, experiment_file, tmp_path, capfd, damage
):
    folder = copy_experiment(experiment, tmp_path)
    member = folder / "members/small"
    damage(member)
    assert main(["experiment", "run", str(experiment_file), "--output", str(folder)]) == 1
    output = capfd.readouterr().out
    (line,) = [line for line in output.splitlines() if line.endswith("; training starts anew")]
    assert line.startswith(f"{member}/")
    assert (folder / "ensemble/results.json").is_file(), output
    for name in ("best.ckpt", "last.ckpt"):
        assert same_weights(member / name, experiment / "members/small" / name)


@pytest.mark.exhaustive
def test_killed_three_times_the_experiment_ends_as_if_nothing_had_happened(
    experiment, experiment_file, tmp_path
):
    """Scheduler and runs are killed in a fit and at two random moments until the last files."""
    args = ["experiment", "run", str(experiment_file), "--output", str(tmp_path), "--jobs", "2"]
    member, rng = tmp_path / "members/small", np.random.default_rng(2)
    later = sorted(rng.choice(np.arange(60, progress(experiment) - 10), 2, replace=False))
    kill_when(lambda: (member / "last.ckpt").exists(), args)
    assert not (member / "results.json").exists()
    for moment in later:
        kill_when(lambda moment=moment: progress(tmp_path) >= moment, args)
    assert main(args) == 1  # one of its gates fails
    for name, checkpoint in product(("small", "large"), ("best.ckpt", "last.ckpt")):
        expected, weights = (checkpoints.read(folder / "members" / name / checkpoint)[1]
                             for folder in (experiment, tmp_path))  # fmt: skip
        assert all(torch.equal(expected[key], weights[key]) for key in expected)
    assert files(tmp_path) >= files(experiment)
    results, expected = (read_results(folder / "results.json") for folder in (tmp_path, experiment))
    assert results == expected
    assert "--ckpt_path" in (tmp_path / "experiment.log").read_text()
    assert pd.read_csv(member / "history.csv")["epoch"].tolist() == [0, 1, 2]


def kill_when(is_moment, args):
    """Runs a command in an interpreter of its own and kills it with all its processes."""
    run = subprocess.Popen([sys.executable, "-m", "consilium", *args], cwd=ROOT,
                           start_new_session=True, stdout=subprocess.DEVNULL)  # fmt: skip
    while not is_moment():
        time.sleep(0.01)
        assert run.poll() is None
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
