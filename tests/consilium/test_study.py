import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from consilium.cli.main import main
from evaluation.predictions import PredictionTable
from evaluation.results import read_results
from lightning_modules import checkpoints

ROOT = Path(__file__).parents[2]


def test_the_folder_is_complete(study):
    for name in ("report.html", "results.json", "study.log", "ensemble/ensemble.json",
                 "ensemble/results.json", "members/small/best.ckpt"):  # fmt: skip
        assert (study / name).is_file(), name
    results = read_results(study / "results.json")
    assert results.gates == {"ensemble.accuracy": True, "members.auroc": False}
    assert set(results.others) == {"ensemble", "small", "large"}


@pytest.mark.parametrize("member", ["small", "large"])
def test_a_members_figures_in_the_ensemble_are_its_own(study, member):
    own = PredictionTable.read(study / "members" / member / "predictions" / "test.parquet")
    inside = PredictionTable.read(study / "ensemble" / "predictions" / "test" / f"{member}.parquet")
    assert own.rows["id"].tolist() == inside.rows["id"].tolist()
    np.testing.assert_allclose(own.logits, inside.logits, atol=1e-6)
    assert own.meta["weights"] == inside.meta["weights"]
    figures = [read_results(study / "members" / member / "results.json").metrics,
               read_results(study / "ensemble" / "results.json").others[member]]  # fmt: skip
    assert figures[0]["accuracy"] == figures[1]["accuracy"]
    assert figures[0]["auroc"].value == pytest.approx(figures[1]["auroc"].value, abs=1e-6)


def test_the_ensemble_says_what_was_voted_offline(study):
    tables = [PredictionTable.read(study / "ensemble" / "predictions" / name)
              for name in ("test/small.parquet", "test/large.parquet", "test.parquet")]  # fmt: skip
    temperature = yaml.safe_load((study / "voters" / "voter.json").read_text())["temperature"]
    mean = (tables[0].probabilities + tables[1].probabilities) / 2
    warmed = mean ** (1 / temperature["value"])
    expected = warmed / warmed.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(tables[2].probabilities, expected, atol=1e-6)
    offline = PredictionTable.read(study / "voters" / "predictions" / "test.parquet")
    np.testing.assert_allclose(tables[2].logits, offline.logits, atol=1e-5)


def test_the_ensemble_stands_on_members_by_relative_paths(study):
    ensemble = yaml.safe_load((study / "ensemble" / "ensemble.json").read_text())
    for member in ensemble["members"].values():
        block, _ = checkpoints.read(study / "ensemble" / member["path"])
        assert block.weights == member["weights"]


def test_a_finished_study_is_left_as_it_is(study, study_file, capsys):
    before = (study / "study.log").read_text()
    assert main(["experiment", "run", str(study_file), "--output", str(study)]) == 1
    assert (study / "study.log").read_text() == before
    said = capsys.readouterr().out
    assert "gate members.auroc: FAIL" in said
    assert f"Report: {study / 'report.html'}" in said


def test_status_and_dry_run(study, study_file, capsys):
    assert main(["experiment", "status", str(study_file), "--output", str(study)]) == 0
    assert capsys.readouterr().out.count("done") == 4
    assert main(["experiment", "run", str(study_file), "--output", "elsewhere", "--dry-run"]) == 0
    lines = capsys.readouterr().out.strip().splitlines()
    assert [line.split()[:2] for line in lines] == [["consilium", "fit"]] * 2 + [
        ["consilium", "ensemble"],
        ["consilium", "test"],
    ]
    assert not Path("elsewhere").exists()


def test_killed_and_run_again_gives_the_same_weights(study, study_file, tmp_path):
    args = ["experiment", "run", str(study_file), "--output", str(tmp_path), "--only", "small"]
    run = subprocess.Popen(
        [sys.executable, "-m", "consilium", *args], cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, env=dict(os.environ),
    )  # fmt: skip
    member = tmp_path / "members" / "small"
    while not (member / "last.ckpt").exists():
        time.sleep(0.02)
        assert run.poll() is None
    os.killpg(run.pid, signal.SIGKILL)
    assert not (member / "results.json").exists()
    assert main(args) == 0
    whole, resumed = (
        checkpoints.read(folder / "last.ckpt")[1] for folder in (study / "members/small", member)
    )
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert "--ckpt_path" in (tmp_path / "study.log").read_text()
    history = pd.read_csv(member / "history.csv")
    assert history["epoch"].tolist() == [0, 1, 2]


def test_a_failed_member_is_named_and_does_not_stop_the_rest(tiny, tmp_path, capsys):
    tiny.member("broken", **{"model.init_args.backbone": "resnet51"})
    tiny.member("quick", **{"trainer.max_epochs": 1})
    file = tiny.root / "broken_study.yaml"
    file.write_text(yaml.safe_dump({"base": str(ROOT / "configs/base.yaml"),
                    "members": {"broken": "broken.yaml", "quick": "quick.yaml"}}))  # fmt: skip
    assert main(["experiment", "run", str(file), "--output", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert "broken failed: consilium fit: backbone: unknown name 'resnet51'" in said
    assert (tmp_path / "members" / "quick" / "results.json").is_file()
    assert main(["experiment", "status", str(file), "--output", str(tmp_path)]) == 0
    assert "broken           failed" in capsys.readouterr().out


def test_a_printed_command_typed_by_hand_fills_the_same_run_folder(
    study, study_file, tmp_path, capsys
):
    """The very line, through a shell; only the word consilium is this interpreter's."""
    args = ["experiment", "run", str(study_file), "--output", str(tmp_path), "--only", "large"]
    assert main([*args, "--dry-run"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    consilium = f'consilium() {{ {sys.executable} -m consilium "$@"; }}'
    shell = ["bash", "-c", f"{consilium}; {line}"]
    subprocess.run(shell, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    run, own = tmp_path / "members/large", study / "members/large"
    assert files(run) == files(own) - {"log.txt", ".done", ".made.json"}
    typed, kept = (checkpoints.read(folder / "best.ckpt")[1] for folder in (run, own))
    assert all(torch.equal(kept[name], typed[name]) for name in kept)
    assert read_results(run / "results.json").metrics == read_results(own / "results.json").metrics
    assert main(args) == 0  # the study takes it for what it is: nothing is trained again
    assert not (tmp_path / "study.log").exists()


def files(folder):
    return {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}


def progress(folder):
    """How far a study is, whatever the machine's speed: files, and ten for each epoch."""
    rows = [len(file.read_text().splitlines()) - 1 for file in folder.rglob("history.csv")]
    return len(files(folder)) + 10 * sum(rows)


def test_killed_at_five_moments_the_study_ends_as_if_nothing_had_happened(
    study, study_file, tmp_path
):
    """Five kills of runner and runs, at random moments between nothing and the last files."""
    moments = sorted(np.random.default_rng(2).choice(progress(study) - 10, 5, replace=False) + 1)
    args = ["experiment", "run", str(study_file), "--output", str(tmp_path), "--jobs", "2"]
    for moment in moments:
        run = subprocess.Popen([sys.executable, "-m", "consilium", *args], cwd=ROOT,
                               start_new_session=True, stdout=subprocess.DEVNULL)  # fmt: skip
        while progress(tmp_path) < moment:
            time.sleep(0.01)
            assert run.poll() is None
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
    assert main(args) == 1  # one of its gates cannot pass
    for name in ("small", "large"):
        whole, killed = (checkpoints.read(folder / "members" / name / "best.ckpt")[1]
                         for folder in (study, tmp_path))  # fmt: skip
        assert all(torch.equal(whole[key], killed[key]) for key in whole)
    assert files(tmp_path) >= files(study)
    found, wanted = (read_results(folder / "results.json") for folder in (tmp_path, study))
    assert found == wanted
