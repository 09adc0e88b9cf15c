import os
import pickle
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from consilium.cli.main import COMMANDS, TRAINING, main, parse_arguments
from consilium.config_files import shorten_parser_error
from consilium.training.lightning_cli import validate_config
from lightning_modules.checkpoints import block_with_digest
from tests.conftest import ROOT


class CodeOnLoad:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def error_line(capsys, args):
    """The single line that an invalid input prints to stderr."""
    code = main(args)
    lines = capsys.readouterr().err.strip().splitlines()
    assert code != 0
    errors = [line for line in lines if line.startswith("consilium ")]
    assert len(errors) == 1
    return errors[0]


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for command, summary in COMMANDS.items():
        assert f"  {command} " in text
        assert summary in text


@pytest.mark.parametrize("name", ["callbacks.py", "evaluation/__init__.py"])
def test_a_package_that_hides_one_of_ours_is_named(tmp_path, name):
    other = tmp_path / name
    other.parent.mkdir(exist_ok=True)
    other.touch()
    place = other.parent if other.name == "__init__.py" else other
    done = run_in(tmp_path, "backbones", "--help")
    message = f"{place.stem}: {place} hides the package of that name of Consilium; remove it from"
    assert done.returncode == 2
    assert done.stderr.startswith(f"consilium: {message}")
    assert done.stderr.count("\n") == 1


def test_a_folder_of_files_by_the_name_of_a_package_is_not_in_the_way(tmp_path):
    (tmp_path / "evaluation").mkdir()
    done = run_in(tmp_path, "backbones", "--help")
    assert (done.returncode, done.stderr) == (0, "")


def run_in(folder, *arguments):
    """A command in an interpreter whose first place to look for packages is the folder."""
    command = [sys.executable, "-m", "consilium", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_shipped_config_is_found_from_any_folder(tmp_path, monkeypatch, capsys):
    """A file of that name in the working directory comes first."""
    monkeypatch.chdir(tmp_path)
    run = ["experiment", "run", "configs/experiments/demo.yaml", "--dry-run"]
    assert main(run) == 0
    assert f"--config {ROOT}/configs/demo/resnet10t.yaml --data." in capsys.readouterr().out
    Path("configs/experiments").mkdir(parents=True)
    Path("configs/experiments/demo.yaml").write_text("members: {}")
    assert main(run) == 2
    assert "configs/experiments/demo.yaml: " in capsys.readouterr().err


@pytest.mark.parametrize("command", [*sorted(COMMANDS.keys() - TRAINING.keys()), "experiment run"])
def test_help_shows_dashes_in_flags(command, capsys):
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert re.findall(r"--[a-z]+_[a-z_]+", capsys.readouterr().out) == []


def test_flags_can_be_written_with_underscores():
    spellings = ("a --round-to 8 --cost-power=0", "a --round_to 8 --cost_power=0")
    first, second = (parse_arguments("prune", args.split()) for args in spellings)
    assert first == second
    assert (first.round_to, first.cost_power) == (8, 0)
    run = parse_arguments("experiment", ["run", "my_file.yaml", "--dry_run", "--only=a_b"])
    assert (run.dry_run, run.only, run.file.name) == (True, ["a_b"], "my_file.yaml")


def test_unknown_command_lists_the_known_ones(capsys):
    assert "allowed are fit, validate, test, predict, experiment" in error_line(capsys, ["xyz"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.init_args.backbone": "resnet51"}, "'resnet51'; the nearest are: resnet51q"),
        ({"data.init_args.class_names": ["a", "b"]},
         "classes in the files are ['comminuted', 'none', 'simple'], not ['a', 'b']"),
        ({"data.init_args.source": 5},
         "wrong.yaml: source: 5 is no class: give class_path, such as datamodules.Folders"),
        ({"data.init_args.augment": "frature"}, "augment is 'frature'; allowed are"),
        ({"model.init_args.loss": {"gamma": -1}}, "gamma"),
        ({"data.init_args.batch_size": 0}, "batch_size is 0; it must be at least 1"),
        ({"trainer.max_epochs": 0}, "--trainer.max_epochs 0: must be at least 1, or -1"),
        ({"early_stopping.monitor": "val/acc"},
         "early_stopping.monitor 'val/acc': the metrics of val are val/loss, val/accuracy"),
        ({"early_stopping.monitor": "loss"}, "early_stopping.monitor 'loss': the metrics of val"),
        ({"model.init_args.lr_scheduler": {"name": "plateau", "monitor": "val/nll"}},
         "lr_scheduler.monitor 'val/nll': the metrics of val"),
        ({"trainer.callbacks+": [
            {"class_path": "callbacks.BestAndLastCheckpoint", "init_args": {"monitor": "val/f1"}}]},
         "callbacks.BestAndLastCheckpoint: monitor 'val/f1': the metrics of val"),
        ({"trainer.callbacks": [{"class_path": "callbacks.ProgressBar"}]},
         "configs/base.yaml first; to add to its callbacks, write `callbacks+`"),
        (
            {"data.init_args.source": {"class_path": "datamodules.Folders",
                                       "init_args": {"root": "no/where", "patient": None}}},
            "no/where: no such file or folder",
        ),
    ],
)  # fmt: skip
def test_invalid_settings_are_one_line_and_write_nothing(tiny, tmp_path, capsys, changes, message):
    run = tmp_path / "run"
    args = ["fit", *tiny.configs("wrong", **changes), "--run", str(run)]
    assert message in error_line(capsys, args)
    assert not run.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.init_args.bakbone": "resnet18"},
         "unknown key 'bakbone' of lightning_modules.ImageClassifier; did you mean 'backbone'?"),
        ({"model.init_args.loss": {"gama": 2}},
         "unknown key 'loss.gama' of lightning_modules.ImageClassifier; did you mean "
         "'loss.gamma'?"),
        ({"data.init_args.btach_size": 2},
         "unknown key 'btach_size' of datamodules.ImageDataModule; did you mean 'batch_size'?"),
        ({"trainer.max_epoch": 3}, "unknown key 'trainer.max_epoch'; did you mean "
         "'trainer.max_epochs'?"),
        ({"early_stoping.patience": 3}, "unknown key 'early_stoping.patience'; did you mean "
         "'early_stopping.patience'?"),
        ({"model.class_path": "lightning_modules.ImageClassifer"},
         "no class 'ImageClassifer' in lightning_modules; did you mean 'ImageClassifier'?"),
        ({"trainer.callbacks+": [{"class_path": "callbacks.EMA", "init_args": {"deca": 1}}]},
         "unknown key 'deca' of callbacks.EMA; did you mean 'decay'?"),
        ({"model.init_args.backbone": "resnet51"}, "backbone: unknown name 'resnet51'; the nearest "
         "are: resnet51q, resnet50, resnet18, resnet61q, resnet50t"),
        ({"data.init_args.batch_size": "many"}, "batch_size: expected int, got 'many'"),
        ({"trainer.max_epochs": "many"}, "trainer.max_epochs: expected int, got 'many'"),
        ({"data.init_args.source": {"class_path": "torch.nn.Linear"}},
         "source: Import path torch.nn.Linear does not correspond to a subclass of Source"),
        ({"data": "nowhere.yaml"}, "data: no such file: nowhere.yaml"),
    ],
)  # fmt: skip
def test_invalid_key_names_file_key_and_the_nearest_allowed_key(tiny, changes, message):
    if "data" in changes:
        file = tiny.root / "wrong_key.yaml"
        file.write_text(yaml.safe_dump(changes))
        configs = [*tiny.configs("whole")[:2], "--config", str(file)]
    else:
        configs = tiny.configs("wrong_key", **changes)
    with pytest.raises(ValueError, match="wrong_key") as caught:
        validate_config(["fit", *configs])
    assert str(caught.value) == f"{tiny.root}/wrong_key.yaml: {message}"


@pytest.mark.parametrize("key", ["data", "data.init_args.source", "trainer.callbacks"])
def test_a_number_in_place_of_a_class_is_no_missing_file(tiny, key):
    message = f"command line: {key.split('init_args.')[-1]}: 5 is no class: give class_path, such"
    with pytest.raises(ValueError, match=message):
        validate_config(["fit", *tiny.configs("right"), f"--{key}", "5"])


def test_invalid_key_in_a_referenced_file_names_that_file(tiny):
    config = yaml.safe_load(tiny.member("outer").read_text())
    inner = tiny.root / "inner_data.yaml"
    data = {**config["data"], "init_args": {**config["data"]["init_args"], "btach_size": 4}}
    inner.write_text(yaml.safe_dump(data))
    configs = tiny.configs("outer", data="inner_data.yaml")
    with pytest.raises(ValueError, match=f"{inner}: unknown key 'btach_size'"):
        validate_config(["fit", *configs])
    arguments = ["--trainer.max_epox", "3"]
    with pytest.raises(ValueError, match=r"command line: unknown key 'trainer.max_epox'"):
        validate_config(["fit", *tiny.configs("whole"), *arguments])


def test_validating_a_config_creates_and_trains_nothing(tiny, tmp_path):
    """The dataset's folder and the class names in it are read by a fit alone."""
    configs = tiny.configs("unbuilt", **{"data.init_args.source.init_args.root": "no/where"})
    config = validate_config(["fit", *configs, "--run", str(tmp_path / "run"), "--test", "true"])
    assert config.fit.data.init_args.source.init_args.root == "no/where"
    assert not Path("no/where").exists()
    assert config.fit.model.init_args.class_names == ["none", "simple", "comminuted"]  # linked
    assert config.fit.test
    assert not (tmp_path / "run").exists()


def test_fit_without_the_base_config_is_refused(tiny, tmp_path, capsys):
    args = ["fit", "--config", str(tiny.member("bare")), "--run", str(tmp_path / "run")]
    assert "give --config configs/base.yaml first" in error_line(capsys, args)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [("a: [1\nb: {2", "outer.yaml, line 2, column 2: invalid YAML: expected ',' or ']'"),
     ("data: broken.yaml", "broken.yaml, line 2, column 4: invalid YAML: mapping values are not")],
)  # fmt: skip
def test_invalid_yaml_is_one_line_with_file_and_position(tmp_path, capsys, text, message):
    (tmp_path / "broken.yaml").write_text("class_path: x\n  a: b: c\n")
    (tmp_path / "outer.yaml").write_text(text)
    error = error_line(capsys, ["fit", "--config", str(tmp_path / "outer.yaml")])
    assert f"{tmp_path}/{message}" in error


def test_long_error_is_cut_in_the_middle():
    error = shorten_parser_error(f"3 leaks: {'a/b.png, ' * 200}. Run consilium audit")
    assert error.startswith("3 leaks: a/b.png")
    assert error.endswith("Run consilium audit")
    assert len(error) <= 400
    assert shorten_parser_error("- no such thing\n\nGiven value: {...}") == "no such thing"


def test_missing_config_file_is_named(capsys):
    assert "nowhere.yaml" in error_line(capsys, ["fit", "--config", "nowhere.yaml"])


def write_invalid_checkpoints(folder, good):
    content = torch.load(good, weights_only=True)
    complete = good.read_bytes()
    (folder / "truncated.ckpt").write_bytes(complete[: len(complete) // 2])
    (folder / "empty.ckpt").write_bytes(b"")
    (folder / "pickle.ckpt").write_bytes(pickle.dumps(CodeOnLoad(folder / "ran")))
    torch.save({"state_dict": CodeOnLoad(folder / "ran")}, folder / "code.ckpt")
    hidden = {**content, "hyper_parameters": {"_instantiator": CodeOnLoad(folder / "ran")}}
    torch.save(hidden, folder / "hidden.ckpt")
    torch.save({"state_dict": content["state_dict"]}, folder / "foreign.ckpt")
    block = {**content["consilium"], "module": "os.system"}
    torch.save({**content, "consilium": block_with_digest(block)}, folder / "module.ckpt")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("truncated.ckpt", "truncated"),
        ("empty.ckpt", "truncated, or not a checkpoint"),
        ("pickle.ckpt", "not a checkpoint"),
        ("code.ckpt", "has code"),
        ("hidden.ckpt", "has code"),
        ("foreign.ckpt", "not a Consilium checkpoint"),
        ("module.ckpt", "'os.system' is not one of"),
        ("absent.ckpt", "no such checkpoint"),
    ],
)
def test_invalid_checkpoint_runs_no_code_and_is_one_line(resnet, tmp_path, capsys, file, message):
    write_invalid_checkpoints(tmp_path, resnet / "best.ckpt")
    args = ["test", "--config", str(resnet / "config.yaml"), "--ckpt_path", str(tmp_path / file)]
    error = error_line(capsys, [*args, "--run", str(tmp_path / "run")])
    assert message in error
    assert file in error
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--model.init_args.backbone=test_vit", "checkpoint has backbone test_resnet, the config "
         "has test_vit"),
        ("--model.init_args.backbone_args={act_layer: gelu}", "checkpoint has backbone_args {}, "
         "the config has {'act_layer': 'gelu'}"),
        ("--model.class_path=lightning_modules.OneVsOneClassifier", "checkpoint is of "
         "ImageClassifier, the config has OneVsOneClassifier"),
    ],
)  # fmt: skip
def test_network_other_than_the_checkpoints_is_one_line(resnet, tmp_path, capsys, change, message):
    known = ["--config", str(resnet / "config.yaml"), "--ckpt_path", str(resnet / "best.ckpt")]
    run = tmp_path / "run"
    assert message in error_line(capsys, ["test", *known, "--run", str(run), change])
    assert not (run / "results.json").exists()


def test_dropout_may_differ_from_the_checkpoints(resnet, tmp_path):
    known = ["--config", str(resnet / "config.yaml"), "--run", str(tmp_path)]
    assert main(["test", *known, "--model.init_args.backbone_args={drop_rate: 0.5}"]) == 0


def test_finished_run_is_not_overwritten(tiny, resnet, capsys):
    error = error_line(capsys, ["fit", *tiny.configs("again"), "--run", str(resnet)])
    assert "contains a finished run" in error


def test_used_run_folder_is_refused_without_importing_torch(tmp_path):
    """Importing it takes seconds. A resume and `fast_dev_run` are decided later."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run/last.ckpt").touch()
    dev_run = tmp_path / "dev.yaml"
    dev_run.write_text("trainer: {fast_dev_run: true}")
    code = f"""
import sys
from consilium.cli.main import main
from consilium.training.run_lock import refuse_used_run
configs = ["--config", "configs/base.yaml", "--config", "configs/demo/resnet10t.yaml"]
args = ["fit", *configs, "--run={tmp_path}/run"]
assert main(args) == 2
assert not {{"torch", "lightning"}} & set(sys.modules)
for others in (["--ckpt_path", "last"], ["--config", "{dev_run}"], ["--trainer.fast_dev_run=1"]):
    refuse_used_run([*args[1:], *others])
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    assert "contains an unfinished run; resume it with --ckpt_path" in result.stderr


def test_corrupt_image_in_a_worker_is_one_line(tiny, tmp_path, capsys):
    configs = tiny.configs("broken", **{
        "data.init_args.source": {"class_path": "datamodules.Table", "init_args": {
            "files": str(tmp_path / "t.csv"), "patient": "patient"}},
        "data.init_args.num_workers": 1})  # fmt: skip
    rows = [f"p{i}.png,{name},{split},{i}" for i, (name, split) in enumerate(
        (n, s) for n in ("none", "simple", "comminuted") for s in ("train", "val"))]  # fmt: skip
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split,patient", *rows]))
    for i in range(6):
        (tmp_path / f"p{i}.png").write_bytes(b"not an image %d" % i)
    error = error_line(capsys, ["fit", *configs, "--run", str(tmp_path / "run")])
    assert "p0.png" in error or "p2.png" in error or "p4.png" in error
    assert "Traceback" not in error


PAGE_FAULTS = """
import resource
import numpy as np
from consilium.cli.main import main

main(["--version"])
faults = []
for _ in range(2):
    np.ones(2**24)  # 128 MiB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
print(faults[1] - faults[0])
"""


def test_the_memory_of_freed_arrays_is_used_again():
    run = subprocess.run([sys.executable, "-c", PAGE_FAULTS], capture_output=True, text=True)
    faults = int(run.stdout.split()[-1])
    assert faults < 100 or platform.libc_ver()[0] != "glibc"  # 32,768 without


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, ("PASSIVE", "1000")), ({"GOMP_SPINCOUNT": "7"}, ("PASSIVE", "7")),
     ({"OMP_WAIT_POLICY": "ACTIVE"}, ("ACTIVE", None))],
)  # fmt: skip
def test_openmp_threads_wait_passively_unless_the_environment_is_set(
    environment, expected, monkeypatch
):
    for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    main([])
    assert (os.environ["OMP_WAIT_POLICY"], os.environ.get("GOMP_SPINCOUNT")) == expected
