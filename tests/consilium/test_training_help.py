"""Help texts of the training commands."""

import re

import pytest

import callbacks
from consilium.cli.main import main
from consilium.training import COMMANDS

MODELS = ("ImageClassifier", "OneVsOneClassifier", "EnsembleModule")
SOURCES = ("Folders", "Table", "Mura", "Phantoms")
HELP_ARGUMENTS = [
    ["--help"],
    ["--data.help", "datamodules.ImageDataModule"],
    *(["--model.help", f"lightning_modules.{name}"] for name in MODELS),
    *(["--data", "datamodules.ImageDataModule", "--data.source.help", f"datamodules.{name}"]
      for name in SOURCES),
    *(["--trainer.callbacks.help", f"callbacks.{name}"] for name in callbacks.__all__
      if name != "WandbLogger"),
    ["--trainer.logger.help", "callbacks.WandbLogger"],
]  # fmt: skip


def help_text(capsys, *args):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(list(args))
    return capsys.readouterr().out


@pytest.mark.parametrize("args", HELP_ARGUMENTS, ids=" ".join)
def test_every_argument_has_a_description(capsys, args):
    entries = re.split(r"\n  (?=-)", help_text(capsys, "fit", *args))[1:]
    texts = {entry.split()[0]: re.split(r" {2,}|\n +", entry, maxsplit=1)[1:] for entry in entries}
    assert [name for name, text in texts.items() if not text or text[0].startswith("(")] == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_names_the_commands_that_describe_data_and_model(capsys, command):
    text = help_text(capsys, command, "--help")
    for arguments in HELP_ARGUMENTS[1:3]:
        assert f"  consilium {command} {' '.join(arguments)}\n" in text
    assert "will be downloaded" not in text
    assert "(required, type: str, default" not in text
