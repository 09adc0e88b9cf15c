"""Experiment files: matrices, layers, overrides, `extends`, ensembles, rounds, refused values."""

from dataclasses import fields
from pathlib import Path

import pytest
import yaml

from consilium.cli.main import main, parse_arguments
from consilium.experiments.config import KEYS, ExperimentConfig, load_experiment
from consilium.experiments.members import expand_matrix, fill_template, flatten_settings
from consilium.experiments.plan import Round, plan, select_runs


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes an experiment next to its configs and loads it."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "a", "b", "ensemble"):
        Path(f"{name}.yaml").touch()

    def write_and_load(content: dict, name: str = "s") -> ExperimentConfig:
        Path(f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return load_experiment(f"{name}.yaml")

    return write_and_load


def commands(config: ExperimentConfig) -> dict[str, list[str]]:
    return {run.name: run.arguments for run in plan(config, Path("out"))}


def test_layers_become_config_files_and_options_in_their_order(write):
    member = [
        "a.yaml",
        {"trainer": {"max_epochs": 3}, "model.init_args.pretrained": None},
        "b.yaml",
    ]
    config = write({"base": "base.yaml", "members": {"m": member}, "overrides": {"tta": ["hflip"]}})
    assert commands(config)["m"] == [
        *("fit", "--config", "base.yaml", "--config", "a.yaml"),
        *("--trainer.max_epochs", "3", "--model.init_args.pretrained", "null"),
        *("--config", "b.yaml", "--tta", '["hflip"]', "--run", "out/members/m", "--test", "true"),
    ]


def test_settings_are_flattened_except_classes_and_empty_mappings():
    source = {"class_path": "X", "init_args": {"root": "r"}}
    settings = {
        "data.init_args": {"source": source, "preprocess": {"size": 64}}, "empty": {},
    }  # fmt: skip
    assert dict(flatten_settings(settings)) == {
        "data.init_args.source": source, "data.init_args.preprocess.size": 64, "empty": {},
    }  # fmt: skip


def test_a_matrix_is_every_combination():
    axes = {"x": ["p", "q"], "y": {"one": 1, "two": {"deep": [2]}}}
    cells = expand_matrix(axes)
    assert list(cells) == ["p_one", "p_two", "q_one", "q_two"]
    template = {"a": "{y}", "b": ["at {x}/{y}", "{z}"]}
    assert fill_template(template, cells["q_two"])["a"] == {"deep": [2]}
    assert fill_template(template, cells["q_one"]) == {"a": 1, "b": ["at q/1", "{z}"]}


def test_an_experiment_that_extends_another_changes_what_it_names(write):
    Path("synthetic").mkdir()
    matrix = {"n": ["1", "2"]}
    write({"base": "base.yaml", "matrix": matrix, "member": ["a.yaml", {"k": "{n}"}],
           "gates": {"members.accuracy": 0.9}, "seeds": [4]})  # fmt: skip
    Path("synthetic/t.yaml").write_text(yaml.safe_dump({
        "extends": "../s.yaml", "members": {"1": {"only": 1}, "2": None},
        "overrides": {"o": "<{n}>"},
    }))  # fmt: skip
    config = load_experiment("synthetic/t.yaml")
    assert list(config.members) == ["1"]
    settings = ["--k", "1", "--only", "1", "--o", "<1>"]
    assert config.members["1"] == ["--config", "base.yaml", "--config", "a.yaml", *settings]
    assert (config.gates, config.seeds, config.name) == ({}, [4], "t")
    with pytest.raises(ValueError, match="member '3': the extended experiment has 1, 2"):
        write({"extends": "s.yaml", "members": {"3": "a.yaml"}}, "wrong")


def test_ensembles_get_the_overrides_that_are_not_about_the_model(write):
    overrides = {
        "data.init_args.num_workers": 0, "model.init_args.backbone": "x", "trainer.devices": 1,
        "trainer.callbacks+": [{"class_path": "Y"}],
    }  # fmt: skip
    members, ensembles = {"m": "a.yaml", "n": "b.yaml"}, {"one": ["m"], "both": "all"}
    config = write({"base": "base.yaml", "members": members, "overrides": overrides,
                    "ensemble": "ensemble.yaml", "ensembles": ensembles})  # fmt: skip
    runs = {run.name: run for run in plan(config, Path("out"))}
    assert list(runs) == ["m", "n", "voters-one", "ensemble-one", "voters-both", "ensemble-both"]
    assert runs["ensemble-both"].needs == ("voters-both", "m", "n")
    arguments = runs["ensemble-one"].arguments
    assert arguments[arguments.index("ensemble.yaml") + 1 :][:4] == [
        "--data.init_args.num_workers", "0", "--trainer.devices", "1"]  # fmt: skip
    assert arguments[-1] == '--model.init_args.members=["out/members/m"]'
    assert "x" not in arguments


def test_the_calibration_of_an_experiment_is_that_of_its_voters_command(write):
    content = {"base": "base.yaml", "members": {"m": "a.yaml"}, "ensemble": "ensemble.yaml"}
    for method in ("temperature", "auto"):
        voters = plan(write({**content, "calibration": method}), Path("out"))[1]
        assert parse_arguments("ensemble", voters.arguments[1:]).calibration == method


def test_rounds_are_seeds_times_folds(write):
    config = write({"base": "base.yaml", "members": {"m": "a.yaml"}, "ensemble": "ensemble.yaml",
                    "seeds": [0, 7], "folds": 3})  # fmt: skip
    runs = plan(config, Path("out"))
    assert [run.name for run in runs[:3]] == ["m-seed0-fold0", "voters-seed0-fold0",
                                              "ensemble-seed0-fold0"]  # fmt: skip
    assert len(runs) == 2 * 3 * 3
    options = "--seed_everything 7 --data.init_args.fold.index 2 --data.init_args.fold.num_folds 3"
    assert options in " ".join(runs[-1].arguments)
    assert options in " ".join(runs[-3].arguments)
    selected = [run.name for run in select_runs(config, runs, ["m-seed7-fold1"])]
    assert selected == ["m-seed7-fold1", "voters-seed7-fold1", "ensemble-seed7-fold1"]
    assert Round().suffix == ""


def test_a_control_is_its_first_member_at_density_one(write):
    content = {"base": "base.yaml", "members": {"s": "a.yaml", "t": "b.yaml"}}
    config = write({**content, "controls": {"c": ["t", "s"]}})
    density = ["--trainer.callbacks.init_args.density", "1.0"]
    assert config.members["c"] == ["--config", "base.yaml", "--config", "b.yaml", *density]
    assert write({**content, "controls": True}).controls == {
        "s_control": ["s"], "t_control": ["t"],
    }  # fmt: skip


def test_saliency_is_evaluated_for_ensembles_or_for_members_without_one(write):
    content = {"base": "base.yaml", "members": {"a": "a.yaml", "b": "b.yaml"}, "seeds": [4],
               "saliency": {"methods": ["GradCAM", "LayerCAM"], "limit": 9}}  # fmt: skip
    members, ensemble = (
        commands(write({**content, **more})) for more in ({}, {"ensemble": "a.yaml"})
    )
    assert members["saliency-b-seed4"] == [
        *("explain", "out/members/b-seed4", "--split", "test", "--measure", "GradCAM", "LayerCAM"),
        *("--limit", "9", "--device", "auto", "-o", "out/saliency/b-seed4"),
    ]
    assert [name for name in ensemble if "saliency" in name] == ["saliency-ensemble-seed4"]
    assert ensemble["saliency-ensemble-seed4"][1] == "out/ensemble-seed4"


def test_gates_may_name_classes_pairs_levels_and_patterns(write):
    names = ("recall/1", "pair/*", "sens*", "study/kappa", "f1*/2")
    gates = {f"a.{name}": 0.5 for name in names}
    content = {"base": "base.yaml", "members": {"a": "a.yaml"}, "level": "study", "gates": gates}
    assert write(content).gates == gates


def test_every_key_is_a_field_or_about_members_and_is_in_the_help(capsys):
    structure = {"base", "extends", "matrix", "member", "overrides"}
    assert KEYS.keys() - structure == {f.name for f in fields(ExperimentConfig)} - {"name", "files"}
    with pytest.raises(SystemExit):
        main(["experiment", "run", "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.strip()} >= KEYS.keys()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"memebrs": {}}, "s.yaml: unknown key 'memebrs'; did you mean 'members'?"),
        ({"matrix": {"x": [1]}}, "matrix` and `member"),
        ({"members": {}}, "members: at least one is required"),
        ({"members": {"ensemble": "a.yaml"}}, "members: 'ensemble' is reserved"),
        ({"members": {"voters-a": "a.yaml"}}, "members: 'voters-a' is reserved"),
        ({"members": {"a/b": "a.yaml"}}, "members: 'a/b' is not the name of a folder"),
        ({"seeds": 3}, "s.yaml: seeds: expected list, got '3'"),
        ({"seeds": ["a"]}, "s.yaml: seeds: expected int, got 'a'"),
        ({"seeds": [0, 0]}, "seeds: .0, 0.; whole numbers from 0, each once"),
        ({"folds": "many"}, "folds: expected int, got 'many'"),
        ({"folds": 3.5}, "folds: expected int, got '3.5'"),
        ({"folds": 2}, "folds: 2; at least 3"),
        ({"seeds": [-1]}, "seeds: .-1.; whole numbers from 0, each once"),
        ({"attended_values": "elbow"}, "attended_values: expected list, got 'elbow'"),
        ({"attended_values": ["elbow"]}, "attended_values .* `attribute` is required"),
        ({"voter": "sotf"}, "voter: 'sotf'; allowed: auto, soft, geometric, majority, learned"),
        ({"voter": "weighted"}, "voter: 'weighted'; allowed: auto, soft"),
        ({"voter": "per_group"}, "voter: per_group requires `attribute`"),
        ({"voter": "group_attention", "attribute": "x"}, "requires `attended_values`"),
        ({"extends": "s.yaml"}, "experiment s.yaml: `extends` is circular"),
        ({"members": {"a": "nowhere.yaml"}}, "nowhere.yaml' is neither a config file nor"),
        ({"base": "nowhere.yaml"}, "base 'nowhere.yaml' is not a file"),
        ({"members": None}, "members: None is not a mapping"),
        ({"members": {"a": None}}, "member 'a': null removes a member of an extended"),
        ({"gates": ["members.accuracy"]}, "gates: .* is not a mapping"),
        ({"gates": {"accuracy": 1}}, "gates: accuracy; allowed: WHO.METRIC with WHO of a, mem"),
        ({"gates": {"members": 0.9}}, "gates: members; allowed: WHO.METRIC"),
        ({"gates": {"ensemble.accuracy": 1}}, "gates: ensemble.accuracy; allowed"),
        ({"gates": {"a.acuracy": 1}}, "gates: a.acuracy; allowed.* METRIC of accuracy, balanced"),
        ({"gates": {"a.study/kappa": 1}}, "gates: a.study/kappa; allowed"),
        ({"gates": {"a.learned/accuracy": 1}}, "gates: a.learned/accuracy; allowed"),
        ({"gates": {"a.val/density": 1}}, "gates: a.val/density; allowed"),
        ({"gates": {"a.density": 2}}, "gates: a.density: 2; density is between 0 and 1"),
        ({"gates": {"a.accuracy": 97}}, "a.accuracy: 97; accuracy is between 0 and 1"),
        ({"level": "study", "gates": {"a.study/recall/*": 9}}, "is between 0 and 1"),
        ({"gates": {"a.accuracy": "high"}}, "gates: expected float, got 'high'"),
        ({"gates": {"a.accuracy": True}}, "gates: expected float, got 'True'"),
        ({"claims": {"a.kappa": {"claimed": 97, "believable": [0, 1], "why": "?"}}}, "a.kappa: 97"),
        ({"claims": {"a.kappa": {"believable": [1, 0], "why": "?"}}}, "believable: .1.0, 0.0."),
        (
            {"claims": {"a.kappa": {"belivable": [0, 1], "why": "?"}}},
            "unknown key 'belivable' .*; did you mean 'believable'",
        ),
        ({"claims": {"members": {"believable": [0, 1], "why": "?"}}}, "claims: members; allowed"),
        ({"ensembles": {"x": "all"}}, "`ensembles` requires `ensemble`"),
        ({"ensemble": "ensemble.yaml", "ensembles": {"x": ["b"]}}, "x: .'b'.; needs members, each"),
        ({"ensemble": "ensemble.yaml", "ensembles": {"x": ["a", "a"]}}, "needs members, each once"),
        ({"controls": 3}, "controls: expected dict, got '3'"),
        ({"controls": {"a": ["a"]}}, "controls: 'a' is already a member"),
        ({"controls": {"c": ["x"]}}, "controls: c: .'x'.; needs members"),
        ({"saliency": ["GradCAM"]}, "saliency: .* is not a mapping"),
        ({"saliency": {"methods": ["Grad"]}}, "saliency: methods: .'Grad'.; allowed: GradCAM, "),
        (
            {"saliency": {"methods": ["GradCAM"], "limit": True}},
            "limit.*int",
        ),
        ({"saliency": {"methods": ["GradCAM"], "limit": 0}}, "saliency: limit: 0; at least 1"),
        ({"level": "film"}, "level: .*image.*study.*patient.*'film'"),
    ],
)
def test_a_wrong_value_is_refused(write, more, message):
    with pytest.raises(ValueError, match=message) as error:
        write({"base": "base.yaml", "members": {"a": "a.yaml"}, **more})
    assert "\n" not in str(error.value)
    assert "s.yaml" in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "s.yaml: the file is empty; `members`"),
        ("- a", "s.yaml: not a mapping; `members`"),
        ("members:\n  a: [1, 2\n  b: 3\n", "s.yaml, line 3, column 4"),
        ("title: \0", "s.yaml: "),
        ("gates: {a.nll: 3}\nmembers: {a: a.yaml}", ""),
    ],
)
def test_invalid_yaml_is_one_line_with_its_place(content, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "base.yaml"):
        Path(name).touch()
    Path("s.yaml").write_text(content + ("\nbase: base.yaml" if not message else ""))
    assert main(["experiment", "status", "s.yaml"]) == (2 if message else 0)
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == bool(message)
