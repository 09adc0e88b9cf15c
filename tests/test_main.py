import os
import pickle
from pathlib import Path

import pytest
import torch

from consilium.cli.main import TRAINING, VERBS, main
from consilium.cli.words import in_short


class Code:
    """A pickle that runs code when it is read."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def complaint(capsys, args):
    """The one line that a wrong input leads to."""
    code = main(args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code != 0
    said = [line for line in lines if line.startswith("consilium ")]
    assert len(said) == 1
    return said[0]


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    for verb, what in {**TRAINING, **VERBS}.items():
        assert f"  {verb} " in said
        assert what in said


def test_an_unknown_verb_names_the_known(capsys):
    assert "study" in complaint(capsys, ["fti"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.init_args.backbone": "resnet51"}, "'resnet51'; the nearest are: resnet51q"),
        ({"model.init_args.bakbone": "resnet18"}, "'bakbone' is not accepted"),
        ({"trainer.max_epoch": 3}, "max_epoch"),
        ({"data.init_args.class_names": ["a", "b"]}, "class_names says ['a', 'b']"),
        ({"data.init_args.augment": "frature"}, "augment is 'frature'; allowed are"),
        ({"model.init_args.loss": {"gamma": -1}}, "gamma: -1"),
        ({"data.init_args.batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"trainer.max_epochs": 0}, "--trainer.max_epochs 0: at least 1, or -1"),
        ({"early_stopping.monitor": "val/acc"},
         "early_stopping.monitor 'val/acc': the figures of val are val/loss, val/accuracy"),
        ({"early_stopping.monitor": "loss"}, "early_stopping.monitor 'loss': the figures of val"),
        ({"model.init_args.optimization": {"schedule": "plateau", "monitor": "val/nll"}},
         "optimization.monitor 'val/nll': the figures of val"),
        ({"trainer.callbacks+": [
            {"class_path": "callbacks.BestAndLastCheckpoint", "init_args": {"monitor": "val/f1"}}]},
         "callbacks.BestAndLastCheckpoint: monitor 'val/f1': the figures of val"),
        ({"trainer.callbacks": [{"class_path": "callbacks.ProgressBar"}]},
         "configs/base.yaml is not among the configs"),
        (
            {"data.init_args.source": {"class_path": "datamodules.Folders",
                                       "init_args": {"root": "no/where", "patient": None}}},
            "no/where: no such folder",
        ),
    ],
)  # fmt: skip
def test_wrong_settings_are_one_line_and_leave_nothing(tiny, tmp_path, capsys, changes, words):
    run = tmp_path / "run"
    args = ["fit", *tiny.configs("wrong", **changes), "--run", str(run)]
    assert words in complaint(capsys, args)
    assert not run.exists()


def test_a_fit_without_the_base_is_refused(tiny, tmp_path, capsys):
    args = ["fit", "--config", str(tiny.member("bare")), "--run", str(tmp_path / "run")]
    assert "configs/base.yaml is not among the configs: give it first" in complaint(capsys, args)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [("a: [1\nb: {2", "not YAML: while parsing a flow sequence at line 1, column 4 did not "),
     ("data: broken.yaml", "broken.yaml: mapping values are not allowed in this context at line")],
)  # fmt: skip
def test_broken_yaml_is_one_line_with_file_and_place(tmp_path, capsys, text, words):
    (tmp_path / "broken.yaml").write_text("class_path: x\n  a: b: c\n")
    (tmp_path / "outer.yaml").write_text(text)
    said = complaint(capsys, ["fit", "--config", str(tmp_path / "outer.yaml")])
    assert words in said
    assert f"{tmp_path}/outer.yaml: " in said
    assert "unicode string" not in said


def test_a_long_error_keeps_both_its_ends():
    said = in_short(f"3 leaks: {'a/b.png, ' * 200}. Run consilium audit, or allow them")
    assert said.startswith("3 leaks: a/b.png")
    assert said.endswith("Run consilium audit, or allow them")
    assert len(said) <= 400
    assert in_short("- no such thing\n\nGiven value: {...}") == "no such thing"


def test_a_missing_config_is_named(capsys):
    assert "nowhere.yaml" in complaint(capsys, ["fit", "--config", "nowhere.yaml"])


def wrong_checkpoints(folder, good):
    content = torch.load(good, weights_only=True)
    whole = good.read_bytes()
    (folder / "truncated.ckpt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "pickle.ckpt").write_bytes(pickle.dumps(Code(folder / "ran")))
    torch.save({"state_dict": Code(folder / "ran")}, folder / "code.ckpt")
    hidden = {**content, "hyper_parameters": {"_instantiator": Code(folder / "ran")}}
    torch.save(hidden, folder / "hidden.ckpt")
    torch.save({"state_dict": content["state_dict"]}, folder / "foreign.ckpt")
    other = {**content["consilium"], "module": "os.system"}
    torch.save({**content, "consilium": other}, folder / "module.ckpt")


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("truncated.ckpt", "truncated"),
        ("empty.ckpt", "truncated, or not a checkpoint"),
        ("pickle.ckpt", "not a checkpoint"),
        ("code.ckpt", "holds code"),
        ("hidden.ckpt", "holds code"),
        ("foreign.ckpt", "not a Consilium checkpoint"),
        ("module.ckpt", "'os.system' is not one of"),
        ("absent.ckpt", "no such checkpoint"),
    ],
)
def test_wrong_checkpoints_run_nothing_and_are_one_line(resnet, tmp_path, capsys, file, words):
    wrong_checkpoints(tmp_path, resnet / "best.ckpt")
    args = ["test", "--config", str(resnet / "config.yaml"), "--ckpt_path", str(tmp_path / file)]
    said = complaint(capsys, [*args, "--run", str(tmp_path / "run")])
    assert words in said
    assert file in said
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("--model.init_args.backbone=test_vit", "checkpoint has backbone test_resnet, the config "
         "says test_vit"),
        ("--model.init_args.backbone_args={act_layer: gelu}", "checkpoint has backbone_args {}, "
         "the config says {'act_layer': 'gelu'}"),
        ("--model.class_path=lightning_modules.OneVsOneClassifier", "checkpoint is of "
         "ImageClassifier, the config says OneVsOneClassifier"),
    ],
)  # fmt: skip
def test_another_network_than_the_checkpoints_is_one_line(resnet, tmp_path, capsys, change, words):
    known = ["--config", str(resnet / "config.yaml"), "--ckpt_path", str(resnet / "best.ckpt")]
    run = tmp_path / "run"
    assert words in complaint(capsys, ["test", *known, "--run", str(run), change])
    assert not (run / "results.json").exists()


def test_dropout_may_be_another_than_the_checkpoints(resnet, tmp_path):
    known = ["--config", str(resnet / "config.yaml"), "--run", str(tmp_path)]
    assert main(["test", *known, "--model.init_args.backbone_args={drop_rate: 0.5}"]) == 0


def test_a_finished_run_is_not_written_over(tiny, resnet, capsys):
    said = complaint(capsys, ["fit", *tiny.configs("again"), "--run", str(resnet)])
    assert "holds a finished run" in said


def test_a_broken_picture_in_a_worker_is_one_line(tiny, tmp_path, capsys):
    configs = tiny.configs("broken", **{
        "data.init_args.source": {"class_path": "datamodules.Table", "init_args": {
            "files": str(tmp_path / "t.csv"), "patient": "patient"}},
        "data.init_args.workers": 1})  # fmt: skip
    rows = [f"p{i}.png,{name},{split},{i}" for i, (name, split) in enumerate(
        (n, s) for n in ("none", "simple", "comminuted") for s in ("train", "val"))]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split,patient", *rows]))
    for i in range(6):
        (tmp_path / f"p{i}.png").write_bytes(b"not a picture %d" % i)
    said = complaint(capsys, ["fit", *configs, "--run", str(tmp_path / "run")])
    assert "p0.png" in said or "p2.png" in said or "p4.png" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("given", "found"),
    [({}, ("PASSIVE", "1000")), ({"GOMP_SPINCOUNT": "7"}, ("PASSIVE", "7")),
     ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None))],
)  # fmt: skip
def test_threads_sleep_soon_unless_the_user_says_otherwise(given, found, monkeypatch):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    main([])
    assert (os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT")) == found
