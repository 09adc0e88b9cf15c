"""Help texts of the training commands."""

import re
import subprocess
import sys
from dataclasses import replace

import cv2
import numpy as np
import pytest

import callbacks
from consilium.cli.main import COMMANDS as ALL_COMMANDS
from consilium.cli.main import main
from consilium.config_files import class_keys
from consilium.training import COMMANDS
from consilium.training.command_help import help_text as command_help
from consilium.training.lightning_cli import validate_config
from tests.conftest import ROOT
from tests.evaluation.tables import make_table

MODELS = ("ImageClassifier", "OneVsOneClassifier", "EnsembleModule")
SOURCES = ("Folders", "Table", "Mura", "ChestXray14", "CheXpert", "Phantoms")
OURS = {"auto_batch", "print_config", "data", "name", "net_benefit"}  # read before Lightning
OURS |= {"sets"}  # of predict alone
HELP_ARGUMENTS = [
    ["--help"],
    ["--trainer.help"],
    ["--data.help", "datamodules.ImageDataModule"],
    *(["--model.help", f"lightning_modules.{name}"] for name in MODELS),
    *(["--data", "datamodules.ImageDataModule", "--data.source.help", f"datamodules.{name}"]
      for name in SOURCES),
    *(["--trainer.callbacks.help", f"callbacks.{name}"] for name in callbacks.__all__
      if name != "WandbLogger"),
    ["--trainer.logger.help", "callbacks.WandbLogger"],
]  # fmt: skip


def help_text(capsys, *args):
    try:
        code = main(list(args))
    except SystemExit as end:
        code = end.code
    assert code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("args", HELP_ARGUMENTS, ids=" ".join)
def test_every_argument_has_a_description(capsys, args):
    entries = re.split(r"\n  (?=-)", help_text(capsys, "fit", *args))[1:]
    texts = {entry.split()[0]: re.split(r" {2,}|\n +", entry, maxsplit=1)[1:] for entry in entries}
    assert [name for name, text in texts.items() if not text or text[0].startswith("(")] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_commands_that_describe_data_and_model(capsys, command):
    text = help_text(capsys, command, "--help")
    for arguments in HELP_ARGUMENTS[2:4]:
        assert f"  consilium {command} {' '.join(arguments)}\n" in text
    assert "will be downloaded" not in text
    assert "(required, type: str, default" not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_opens_with_examples_and_fits_a_screen(command):
    lines = command_help(command).splitlines()
    assert len(lines) <= 60
    assert max(map(len, lines)) <= 100
    examples = [line for line in lines[4:9] if line.startswith(f"  consilium {command} ")]
    assert len(examples) >= 2
    assert len(examples) >= 3 or command in ("validate", "predict")


def test_examples_of_fit_can_be_run(capsys, monkeypatch):
    text = command_help("fit").replace("\\\n", "")
    for example in re.findall(r"^  consilium (fit --config configs/base.*?)$", text, re.M):
        assert validate_config(example.split())


def test_every_argument_in_the_help_exists(capsys):
    text = "".join(map(command_help, COMMANDS))
    names = set(re.findall(r"^  --([\w.]+) ", text, re.M)) - OURS
    groups = {"data": "datamodules.ImageDataModule", "model": "lightning_modules.ImageClassifier"}
    known = {f"{group}.{key}" for group, path in groups.items() for key in class_keys(path)}
    listed = set(re.findall(r"--([\w.]+)", help_text(capsys, "fit", "--trainer.help")))
    assert names - known - listed == set()


def test_help_is_printed_without_importing_torch():
    """Importing it takes seconds."""
    commands = list(ALL_COMMANDS)
    code = f"""
import sys
from consilium.cli.main import main
for command in {commands}:
    try:
        assert main([command, "--help"]) == 0
    except SystemExit as end:
        assert end.code == 0
    assert not {{"torch", "lightning"}} & set(sys.modules), command
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert all(f"usage: consilium {command} " in result.stdout for command in commands)


SLOW_IMPORTS = {"torch", "lightning", "timm", "torchmetrics", "albumentations", "wandb", "sklearn",
                "scipy.signal", "ray"}  # fmt: skip
RUNS = "{folder}/runs/a {folder}/runs/b"
MAY_IMPORT = {  # command: the slow packages that it needs
    "audit {folder}/images -o {folder}/audit": [],
    "init {folder}/images --audit {folder}/audit -o {folder}/mine": [],
    f"ensemble --val {RUNS} --test {RUNS} -o {{folder}}/voters": [],
    f"compare {RUNS} -o {{folder}}/compared": [],
    "experiment status configs/experiments/demo.yaml": [],
    "cache info --root {folder}": ["torch"],  # it contains the code of the pixels
}


def test_commands_that_run_no_network_import_no_slow_package(tmp_path):
    rng = np.random.default_rng(0)
    for seed, name in enumerate(("a", "b")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(12):
            pixels = rng.integers(0, 256, (32, 32), dtype=np.uint8)
            cv2.imwrite(str(tmp_path / "images" / name / f"p{k}.png"), pixels)
        for split in ("val", "test"):
            table = make_table(seed=seed, split=split, gain=3.0)
            file = tmp_path / "runs" / name / "predictions" / f"{split}.parquet"
            rows = table.rows.assign(**{k: split + table.rows[k] for k in ("id", "patient")})
            replace(table, rows=rows, meta={"weights": name}).write(file)
    code = f"""
import os, sys
import cv2, matplotlib.pyplot, pandas, pyarrow.parquet, scipy.stats  # once, for all forks
from consilium.cli.main import main
for command in sys.argv[1:]:
    if not os.fork():
        code = main(command.split())
        slow = sorted({SLOW_IMPORTS} & set(sys.modules))
        print(command, "ends with", code, "and imports", slow, flush=True)
        os._exit(0)
    os.wait()
"""
    commands = [command.format(folder=tmp_path) for command in MAY_IMPORT]
    result = subprocess.run(
        [sys.executable, "-c", code, *commands], capture_output=True, text=True, cwd=ROOT
    )
    imports = [line for line in result.stdout.splitlines() if " ends with " in line]
    expected = zip(commands, MAY_IMPORT.values(), strict=True)
    assert imports == [f"{c} ends with 0 and imports {allowed}" for c, allowed in expected], (
        result.stderr
    )
