"""Runs of an experiment whose file or configs were changed afterwards."""

import shutil
from pathlib import Path

import pytest
import yaml

from consilium.cli.main import main
from consilium.experiments import provenance
from consilium.experiments.config import load_experiment
from consilium.experiments.plan import plan
from consilium.experiments.run import Run

LR = {"model.init_args.lr": 0.1}
AT_LEARNING_RATE = "without model.init_args.lr, the experiment has 0.1"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes an experiment next to its configs and plans its runs in `out`."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("trainer: {callbacks: [{class_path: X}], max_epochs: 3}\n")
    Path("data.yaml").write_text("init_args: {batch_size: 8, num_workers: 2}\n")
    for name in ("a", "b", "c", "ensemble"):
        Path(f"{name}.yaml").write_text("data: data.yaml\n")

    def write_and_plan(more: dict, file: str = "s.yaml", out: str = "out") -> dict[str, Run]:
        content = {"base": "base.yaml", "ensemble": "ensemble.yaml",
                   "members": {"a": "a.yaml", "b": "b.yaml"}, **more}  # fmt: skip
        Path(file).write_text(yaml.safe_dump(content, sort_keys=False))
        return {run.name: run for run in plan(load_experiment(file), Path(out))}

    return write_and_plan


def finish(runs: dict[str, Run]) -> None:
    """Fills the folders of runs that are not done, as their processes would."""
    for run in runs.values():
        if not run.is_done():
            run.mark_outdated()
            run.folder.mkdir(parents=True, exist_ok=True)
            run.prepare_folder()
            content = f"{run.settings} {[needed.settings for needed in run.inputs]}"
            (run.folder / run.result).write_text(content)
            for name in ("log.txt", ".done"):
                (run.folder / name).touch()


def statuses(runs: dict[str, Run]) -> dict[str, str]:
    return {name: run.state().status for name, run in runs.items()}


@pytest.mark.parametrize(
    ("more", "changed", "reason"),
    [
        ({}, "", ""),
        ({"title": "t", "gates": {"members.nll": 0}}, "", ""),
        ({"overrides": {"data.init_args.num_workers": 9, "trainer.accelerator": "gpu"}}, "", ""),
        ({"members": {"a": ["a.yaml", {"trainer.max_epochs": 3}], "b": "b.yaml"}}, "", ""),
        ({"members": {"a": ["a.yaml", {"trainer.max_epochs": 5}], "b": "b.yaml"}},
         "a voters ensemble", "with trainer.max_epochs 3, the experiment has 5"),
        ({"overrides": LR}, "a b voters ensemble", AT_LEARNING_RATE),
        ({"overrides": {"trainer.callbacks+": [{"class_path": "Y"}]}}, "a b voters ensemble",
         "without trainer.callbacks+.0.class_path, the experiment has Y"),
        ({"voter": "majority"}, "voters ensemble", ""),
        ({"ensemble": ["ensemble.yaml", {"data.init_args.batch_size": 4}]}, "ensemble", ""),
        ({"members": {"a": "a.yaml", "c": "c.yaml"}}, "voters ensemble", ""),
    ],
)  # fmt: skip
def test_a_run_with_other_settings_is_changed_and_not_done(write, more, changed, reason, capsys):
    finish(write({}))
    runs = write(more)
    assert [name for name, s in statuses(runs).items() if s == "changed"] == changed.split()
    assert main(["experiment", "status", "s.yaml", "--output", "out"]) == 0
    assert capsys.readouterr().out.count("changed") == len(changed.split())
    if reason:
        assert main(["experiment", "run", "s.yaml", "--output", "out"]) == 2
        assert f"out/members/a was made {reason}; remove that" in capsys.readouterr().err
        return
    finish(runs)
    assert set(statuses(runs).values()) == {"done"}


def test_config_files_are_resolved_and_may_be_moved(write, tmp_path):
    finish(write({}))
    Path("data.yaml").rename("other.yaml")
    Path("a.yaml").write_text("data: other.yaml\n")
    Path("b.yaml").write_text("data: {init_args: {num_workers: 1, batch_size: 8}}\n")
    Path("ensemble.yaml").write_text("data: {init_args: {batch_size: 8}}\n")
    shutil.move("out", "moved")
    assert set(statuses(write({}, out=str(tmp_path / "moved"))).values()) == {"done"}
    Path("other.yaml").write_text("init_args: {batch_size: 4}\n")
    runs = write({}, out="moved")
    assert runs["a"].change() == "with data.init_args.batch_size 8, the experiment has 4"
    assert statuses(runs) == {
        "a": "changed", "b": "done", "voters": "changed", "ensemble": "changed",
    }  # fmt: skip


def test_an_unfinished_run_with_other_settings_is_not_resumed(write):
    finish(write({}))
    run = write({"overrides": LR})["a"]
    for name in ("results.json", ".done"):
        (run.folder / name).unlink()
    assert run.state().status == "stopped"  # without a checkpoint it starts again
    (run.folder / "last.ckpt").touch()
    assert run.state().status == "changed"
    with pytest.raises(ValueError, match=f"out/members/a was made {AT_LEARNING_RATE}"):
        run.start()
    run.stop()
    assert (run.folder / provenance.FILE).is_file()


def test_an_ensemble_is_changed_when_a_member_was_trained_again(write):
    runs = write({})
    finish(runs)
    (runs["b"].folder / "results.json").write_text("another")
    assert statuses(runs) == {
        "a": "done", "b": "done", "voters": "changed", "ensemble": "changed",
    }  # fmt: skip
    finish(runs)
    shutil.rmtree(runs["b"].folder)
    assert statuses(runs)["voters"] == "changed"


def test_runs_without_recorded_provenance_are_done(write):
    finish(write({}))
    for file in Path("out").rglob(provenance.FILE):
        file.unlink()
    runs = write({"overrides": LR, "voter": "majority"})
    assert set(statuses(runs).values()) == {"done"}
    shutil.rmtree(runs["b"].folder)
    assert statuses(runs) == {
        "a": "done", "b": "waiting", "voters": "changed", "ensemble": "changed",
    }  # fmt: skip
    runs["voters"].mark_outdated()
    finish({"b": runs["b"]})
    assert statuses(runs)["voters"] == "changed"  # although its members are there again


def test_an_ensemble_with_other_members_keeps_no_predictions_of_the_old_ones(write):
    finish(write({}))
    old = Path("out/ensemble/predictions/test/b.parquet")
    old.parent.mkdir(parents=True)
    old.touch()
    finish(write({"members": {"a": "a.yaml", "c": "c.yaml"}}))
    assert not old.exists()


def test_statuses_are_aligned_next_to_long_names(write, capsys):
    finish(write({"members": {"a": "a.yaml", "resnet_with_a_long_name": "b.yaml"}}))
    assert main(["experiment", "status", "s.yaml", "--output", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.index("done") for line in lines} == {len("resnet_with_a_long_name ")}


def test_two_experiments_of_one_name_do_not_share_a_folder(write, capsys):
    Path("other").mkdir()
    finish({"a": write({}, out="runs/s")["a"]})
    assert main(["experiment", "run", "s.yaml", "--only", "a"]) == 0
    for name in ("base", "a", "b", "ensemble", "data"):
        shutil.copy(f"{name}.yaml", "other")
    shutil.copy("s.yaml", "other")
    assert main(["experiment", "run", "other/s.yaml", "--only", "a"]) == 2
    error = capsys.readouterr().err
    assert "runs/s belongs to " in error
    assert "/s.yaml, not to other/s.yaml; use --output DIR" in error
    assert main(["experiment", "status", "other/s.yaml", "--output", "runs/s"]) == 0
    Path("s.yaml").unlink()
    assert main(["experiment", "status", "other/s.yaml"]) == 0
