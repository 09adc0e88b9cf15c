"""Studies as they are written: matrices, layers, overrides, twins, ensembles, rounds."""

from pathlib import Path

import pytest
import yaml

from consilium.cli.main import main
from consilium.experiments.config import ExperimentConfig, read_study
from consilium.experiments.layers import expanded, filled, flat
from consilium.experiments.plan import Round, chosen, plan


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Writes a study beside its configs and reads it."""
    monkeypatch.chdir(tmp_path)
    for name in ("base", "a", "b", "ensemble"):
        Path(f"{name}.yaml").touch()

    def written(said: dict, name: str = "s") -> ExperimentConfig:
        Path(f"{name}.yaml").write_text(yaml.safe_dump(said, sort_keys=False))
        return read_study(f"{name}.yaml")

    return written


def commands(study: ExperimentConfig) -> dict[str, list[str]]:
    return {run.name: run.arguments for run in plan(study, Path("out"))}


def test_layers_become_files_and_flags_in_their_order(write):
    member = [
        "a.yaml",
        {"trainer": {"max_epochs": 3}, "model.init_args.pretrained": None},
        "b.yaml",
    ]
    study = write({"base": "base.yaml", "members": {"m": member}, "overrides": {"tta": ["hflip"]}})
    assert commands(study)["m"] == [
        *("fit", "--config", "base.yaml", "--config", "a.yaml"),
        *("--trainer.max_epochs", "3", "--model.init_args.pretrained", "null"),
        *("--config", "b.yaml", "--tta", '["hflip"]', "--run", "out/members/m"),
    ]


def test_a_class_stays_in_one_piece_and_all_else_is_changed_one_by_one():
    source = {"class_path": "X", "init_args": {"root": "r"}}
    said = {"data.init_args": {"source": source, "preprocess": {"size": 64}}, "empty": {}}
    assert dict(flat(said)) == {
        "data.init_args.source": source, "data.init_args.preprocess.size": 64, "empty": {},
    }  # fmt: skip


def test_a_matrix_is_every_combination():
    axes = {"x": ["p", "q"], "y": {"one": 1, "two": {"deep": [2]}}}
    cells = expanded(axes)
    assert list(cells) == ["p_one", "p_two", "q_one", "q_two"]
    template = {"a": "{y}", "b": ["at {x}/{y}", "{z}"]}
    assert filled(template, cells["q_two"])["a"] == {"deep": [2]}
    assert filled(template, cells["q_one"]) == {"a": 1, "b": ["at q/1", "{z}"]}


def test_a_twin_changes_what_it_names(write):
    Path("twin").mkdir()
    matrix = {"n": ["1", "2"]}
    write({"base": "base.yaml", "matrix": matrix, "member": ["a.yaml", {"k": "{n}"}],
           "gates": {"members.accuracy": 0.9}, "seeds": [4]})  # fmt: skip
    Path("twin/t.yaml").write_text(yaml.safe_dump(
        {"like": "../s.yaml", "members": {"1": {"only": 1}, "2": None}, "overrides": {"o": "<{n}>"}}
    ))  # fmt: skip
    twin = read_study("twin/t.yaml")
    assert list(twin.members) == ["1"]
    assert twin.members["1"] == (Path("a.yaml"), {"k": "1"}, {"only": 1}, {"o": "<1>"})
    assert (twin.gates, twin.seeds, twin.name) == ({}, [4], "t")
    with pytest.raises(ValueError, match="member '3'; members are 1, 2"):
        write({"like": "s.yaml", "members": {"3": "a.yaml"}}, "wrong")


def test_ensembles_get_what_overrides_say_of_the_data(write):
    over = {"data.init_args.workers": 0, "model.init_args.backbone": "x", "trainer.devices": 1,
            "trainer.callbacks+": [{"class_path": "Y"}]}  # fmt: skip
    members, ensembles = {"m": "a.yaml", "n": "b.yaml"}, {"one": ["m"], "both": "all"}
    study = write({"base": "base.yaml", "members": members, "overrides": over,
                   "ensemble": "ensemble.yaml", "ensembles": ensembles})  # fmt: skip
    runs = {run.name: run for run in plan(study, Path("out"))}
    assert list(runs) == ["m", "n", "voters-one", "ensemble-one", "voters-both", "ensemble-both"]
    assert runs["ensemble-both"].needs == ("voters-both", "m", "n")
    words = runs["ensemble-one"].arguments
    assert words[words.index("ensemble.yaml") + 1 :][:4] == [
        "--data.init_args.workers", "0", "--trainer.devices", "1"]  # fmt: skip
    assert words[-1] == "--model.init_args.members=[out/members/m]"
    assert "x" not in words


def test_rounds_are_seeds_times_folds(write):
    study = write({"base": "base.yaml", "members": {"m": "a.yaml"}, "ensemble": "ensemble.yaml",
                   "seeds": [0, 7], "folds": 3})  # fmt: skip
    runs = plan(study, Path("out"))
    assert [run.name for run in runs[:3]] == ["m-seed0-fold0", "voters-seed0-fold0",
                                              "ensemble-seed0-fold0"]  # fmt: skip
    assert len(runs) == 2 * 3 * 3
    flags = "--seed_everything 7 --data.init_args.fold.part 2 --data.init_args.fold.of 3"
    assert flags in " ".join(runs[-1].arguments)
    assert flags in " ".join(runs[-3].arguments)
    only = [run.name for run in chosen(study, runs, ["m-seed7-fold1"])]
    assert only == ["m-seed7-fold1", "voters-seed7-fold1", "ensemble-seed7-fold1"]
    assert Round().suffix == ""


def test_a_control_is_the_member_at_density_one(write):
    said = {"base": "base.yaml", "members": {"s": "a.yaml", "t": "b.yaml"}}
    study = write({**said, "control": {"c": ["t", "s"]}})
    assert study.members["c"] == (Path("b.yaml"), {"trainer.callbacks.init_args.density": 1.0})
    assert write({**said, "control": True}).controls == {"s_control": ["s"], "t_control": ["t"]}


def test_maps_are_measured_of_each_ensemble_or_of_each_member_without_one(write):
    said = {"base": "base.yaml", "members": {"a": "a.yaml", "b": "b.yaml"}, "seeds": [4],
            "maps": {"methods": ["GradCAM", "LayerCAM"], "limit": 9}}  # fmt: skip
    alone, ensemble = (commands(write({**said, **more})) for more in ({}, {"ensemble": "a.yaml"}))
    assert alone["maps-b-seed4"] == [
        *("explain", "out/members/b-seed4", "--split", "test", "--measure", "GradCAM", "LayerCAM"),
        *("--limit", "9", "--device", "auto", "-o", "out/maps/b-seed4"),
    ]
    assert [name for name in ensemble if "maps" in name] == ["maps-ensemble-seed4"]
    assert ensemble["maps-ensemble-seed4"][1] == "out/ensemble-seed4"


def test_gates_of_classes_pairs_levels_and_patterns_are_read(write):
    gates = {f"a.{name}": 0.5 for name in ("recall/1", "pair/*", "sens*", "study/kappa", "f1*/2")}
    said = {"base": "base.yaml", "members": {"a": "a.yaml"}, "level": "study", "gates": gates}
    assert write(said).gates == gates


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"memebrs": {}}, "unknown key 'memebrs'; the nearest is 'members'; allowed"),
        ({"matrix": {"x": [1]}}, "matrix and member"),
        ({"members": {}}, "members: there are none"),
        ({"members": {"ensemble": "a.yaml"}}, "member: 'ensemble' is a name that the study uses"),
        ({"members": {"voters-a": "a.yaml"}}, "member: 'voters-a' is a name that the study uses"),
        ({"members": {"a/b": "a.yaml"}}, "member: 'a/b'; a name of a folder, without /"),
        ({"seeds": 3}, "seeds: 3; a list of whole numbers from 0, each once"),
        ({"seeds": ["a"]}, "seeds: .'a'.; a list of whole numbers"),
        ({"seeds": [0, 0]}, "seeds: .0, 0.; a list of whole numbers from 0, each once"),
        ({"folds": "5"}, "folds: '5'; a whole number, at least 3"),
        ({"folds": 3.5}, "folds: 3.5; a whole number, at least 3"),
        ({"attend": "elbow"}, "attend: 'elbow'; a list of values of the attribute"),
        ({"attend": ["elbow"]}, "attend names values of an attribute: it needs attribute"),
        ({"voter": "sotf"}, "voter: 'sotf'; allowed are soft, geometric, majority, learned"),
        ({"voter": "weighted"}, "voter: 'weighted'; allowed are soft"),
        ({"voter": "per_part"}, "voter: per_part; it needs attribute"),
        ({"like": "s.yaml"}, "study s.yaml: like: it is like itself"),
        ({"members": {"a": "nowhere.yaml"}}, "nowhere.yaml' is neither a config file nor"),
        ({"base": "nowhere.yaml"}, "base 'nowhere.yaml' is not a file"),
        ({"members": None}, "members: None is no mapping of names"),
        ({"members": {"a": None}}, "member 'a'; null is for members of `like`"),
        ({"gates": ["members.accuracy"]}, "gates: .* is no mapping of names"),
        ({"gates": {"accuracy": 1}}, "gates: accuracy; allowed are WHO.METRIC with WHO of a, mem"),
        ({"gates": {"members": 0.9}}, "gates: members; allowed are WHO.METRIC"),
        ({"gates": {"ensemble.accuracy": 1}}, "gates: ensemble.accuracy; allowed"),
        ({"gates": {"a.acuracy": 1}}, "gates: a.acuracy; allowed .* METRIC of accuracy, balanced"),
        ({"gates": {"a.study/kappa": 1}}, "gates: a.study/kappa; allowed"),
        ({"gates": {"a.accuracy": 97}}, "a.accuracy: 97; figures of this kind go to 1"),
        ({"level": "study", "gates": {"a.study/recall/*": 9}}, "figures of this kind go to 1"),
        ({"claims": {"a.kappa": {"claimed": 97, "believable": [0, 1], "why": "?"}}}, "a.kappa: 97"),
        ({"gates": {"a.accuracy": "high"}}, "gates: a.accuracy: 'high' is not the least value"),
        ({"claims": {"members.accuracy": {"believable": [1, 0], "why": "?"}}}, "claims: members.a"),
        ({"claims": {"members": {"believable": [0, 1], "why": "?"}}}, "claims: members; allowed"),
        ({"ensembles": {"x": "all"}}, "ensembles need ensemble"),
        ({"ensemble": "ensemble.yaml", "ensembles": {"x": ["b"]}}, "x: .'b'.; members, each once"),
        (
            {"ensemble": "ensemble.yaml", "ensembles": {"x": ["a", "a"]}},
            "x: .*; members, each once",
        ),
        ({"control": 3}, "control: 3; true, or names"),
        ({"control": {"a": ["a"]}}, "control: 'a' is a member already"),
        ({"maps": ["GradCAM"]}, "maps: .* is no mapping of names"),
        ({"maps": {"methods": ["Grad"]}}, "maps: .*Grad.*; needed is methods, a list of GradCAM, "),
        ({"maps": {"methods": ["GradCAM"], "limit": True}}, "limit may be a whole number from 1"),
        ({"maps": {"methods": ["GradCAM"], "limit": 0}}, "limit may be a whole number from 1"),
        ({"folds": 2}, "folds: 2; a whole number, at least 3"),
        ({"level": "film"}, "level 'film'; allowed are image, study, patient"),
    ],
)
def test_a_wrong_study_is_refused(write, more, words):
    with pytest.raises(ValueError, match=words):
        write({"base": "base.yaml", "members": {"a": "a.yaml"}, **more})


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("", "s.yaml: the file is empty; members"),
        ("- a", "s.yaml: a list, not a mapping; members"),
        ("members:\n  a: [1, 2\n  b: 3\n", "s.yaml, line 3, column 4: no YAML: expected"),
        ("title: \0", "s.yaml: no YAML in UTF-8: unacceptable character"),
        ("gates: {a.nll: 3}\nmembers: {a: a.yaml}", ""),
    ],
)
def test_what_is_no_study_is_one_line_with_its_place(said, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("a.yaml", "base.yaml"):
        Path(name).touch()
    Path("s.yaml").write_text(said + ("\nbase: base.yaml" if not words else ""))
    assert main(["experiment", "status", "s.yaml"]) == (2 if words else 0)
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == bool(words)
