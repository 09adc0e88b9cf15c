"""A study whose file or configs were changed after its runs were made."""

import shutil
from pathlib import Path

import pytest
import yaml

from consilium.cli.main import main
from consilium.experiments import provenance
from consilium.experiments.config import read_study
from consilium.experiments.plan import plan
from consilium.experiments.run import Run


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a study beside its configs and plans its runs in `out`."""
    monkeypatch.chdir(tmp_path)
    Path("base.yaml").write_text("trainer: {callbacks: [{class_path: X}], max_epochs: 3}\n")
    Path("data.yaml").write_text("init_args: {batch_size: 8, workers: 2}\n")
    for name in ("a", "b", "c", "ensemble"):
        Path(f"{name}.yaml").write_text("data: data.yaml\n")

    def written(more: dict, file: str = "s.yaml", out: str = "out") -> dict[str, Run]:
        said = {"base": "base.yaml", "ensemble": "ensemble.yaml",
                "members": {"a": "a.yaml", "b": "b.yaml"}, **more}  # fmt: skip
        Path(file).write_text(yaml.safe_dump(said, sort_keys=False))
        return {run.name: run for run in plan(read_study(file), Path(out))}

    return written


def finish(runs: dict[str, Run]) -> None:
    """Fills the folders of runs that are not done as their processes would."""
    for run in runs.values():
        if not run.done():
            run.outdate()
            run.folder.mkdir(parents=True, exist_ok=True)
            run.make_ready()
            (run.folder / run.result).write_text(f"{run.told} {[each.told for each in run.of]}")
            for name in ("log.txt", ".done"):
                (run.folder / name).touch()


def words(runs: dict[str, Run]) -> dict[str, str]:
    return {name: run.state().word for name, run in runs.items()}


LR = {"model.init_args.lr": 0.1}


@pytest.mark.parametrize(
    ("more", "changed", "why"),
    [
        ({}, "", ""),
        ({"title": "t", "gates": {"members.nll": 0}}, "", ""),
        ({"overrides": {"data.init_args.workers": 9, "trainer.accelerator": "gpu"}}, "", ""),
        ({"members": {"a": ["a.yaml", {"trainer.max_epochs": 3}], "b": "b.yaml"}}, "", ""),
        ({"members": {"a": ["a.yaml", {"trainer.max_epochs": 5}], "b": "b.yaml"}},
         "a voters ensemble", "with trainer.max_epochs 3, the study says 5"),
        ({"overrides": LR}, "a b voters ensemble",
          "without model.init_args.lr, the study says 0.1"),
        ({"overrides": {"trainer.callbacks+": [{"class_path": "Y"}]}}, "a b voters ensemble",
         "without trainer.callbacks+.0.class_path, the study says Y"),
        ({"voter": "majority"}, "voters ensemble", ""),
        ({"ensemble": ["ensemble.yaml", {"data.init_args.batch_size": 4}]}, "ensemble", ""),
        ({"members": {"a": "a.yaml", "c": "c.yaml"}}, "voters ensemble", ""),
    ],
)  # fmt: skip
def test_what_was_made_with_other_settings_is_not_done(write, more, changed, why, capsys):
    finish(write({}))
    runs = write(more)
    assert [name for name, word in words(runs).items() if word == "changed"] == changed.split()
    assert main(["experiment", "status", "s.yaml", "--output", "out"]) == 0
    assert capsys.readouterr().out.count("changed") == len(changed.split())
    if why:
        assert main(["experiment", "run", "s.yaml", "--output", "out"]) == 2
        assert f"out/members/a was made {why}: remove that" in capsys.readouterr().err
        return
    finish(runs)
    assert set(words(runs).values()) == {"done"}


def test_config_files_are_read_through_and_may_move(write, tmp_path):
    finish(write({}))
    Path("data.yaml").rename("other.yaml")
    Path("a.yaml").write_text("data: other.yaml\n")
    Path("b.yaml").write_text("data: {init_args: {workers: 1, batch_size: 8}}\n")
    Path("ensemble.yaml").write_text("data: {init_args: {batch_size: 8}}\n")
    shutil.move("out", "moved")
    assert set(words(write({}, out=str(tmp_path / "moved"))).values()) == {"done"}
    Path("other.yaml").write_text("init_args: {batch_size: 4}\n")
    said = write({}, out="moved")
    assert said["a"].changed() == "with data.init_args.batch_size 8, the study says 4"
    assert words(said) == {"a": "changed", "b": "done", "voters": "changed", "ensemble": "changed"}


def test_what_was_begun_with_other_settings_is_not_gone_on_with(write):
    finish(write({}))
    run = write({"overrides": LR})["a"]
    for name in ("results.json", ".done"):
        (run.folder / name).unlink()
    assert run.state().word == "stopped"  # nothing was kept, so it begins anew
    (run.folder / "last.ckpt").touch()
    assert run.state().word == "changed"
    with pytest.raises(ValueError, match=r"out/members/a was made without model.init_args.lr"):
        run.start()
    run.stop()
    assert (run.folder / ".made.json").is_file()


def test_a_member_that_is_made_again_has_its_ensemble_made_again(write):
    runs = write({})
    finish(runs)
    (runs["b"].folder / "results.json").write_text("another")
    assert words(runs) == {"a": "done", "b": "done", "voters": "changed", "ensemble": "changed"}
    finish(runs)
    shutil.rmtree(runs["b"].folder)
    assert words(runs)["voters"] == "changed"


def test_runs_of_which_nobody_wrote_how_they_were_made_are_done(write):
    finish(write({}))
    for file in Path("out").rglob(provenance.FILE):
        file.unlink()
    runs = write({"overrides": LR, "voter": "majority"})
    assert set(words(runs).values()) == {"done"}
    shutil.rmtree(runs["b"].folder)
    assert words(runs) == {"a": "done", "b": "waiting", "voters": "changed", "ensemble": "changed"}
    runs["voters"].outdate()
    finish({"b": runs["b"]})
    assert words(runs)["voters"] == "changed"  # though its members are there again


def test_a_ensemble_that_is_made_again_keeps_no_table_of_its_old_members(write):
    finish(write({}))
    old = Path("out/ensemble/predictions/test/b.parquet")
    old.parent.mkdir(parents=True)
    old.touch()
    finish(write({"members": {"a": "a.yaml", "c": "c.yaml"}}))
    assert not old.exists()


def test_the_states_of_runs_with_long_names_stand_below_one_another(write, capsys):
    finish(write({"members": {"a": "a.yaml", "resnet_with_a_long_name": "b.yaml"}}))
    assert main(["experiment", "status", "s.yaml", "--output", "out"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.index("done") for line in lines} == {len("resnet_with_a_long_name ")}


def test_two_studies_of_one_name_do_not_share_a_folder(write, capsys):
    Path("other").mkdir()
    finish({"a": write({}, out="runs/s")["a"]})
    assert main(["experiment", "run", "s.yaml", "--only", "a"]) == 0
    for name in ("base", "a", "b", "ensemble", "data"):
        shutil.copy(f"{name}.yaml", "other")
    shutil.copy("s.yaml", "other")
    assert main(["experiment", "run", "other/s.yaml", "--only", "a"]) == 2
    said = capsys.readouterr().err
    assert "runs/s is of the study " in said
    assert "/s.yaml, not of other/s.yaml: give --output DIR" in said
    assert main(["experiment", "status", "other/s.yaml", "--output", "runs/s"]) == 0
    Path("s.yaml").unlink()
    assert main(["experiment", "status", "other/s.yaml"]) == 0
