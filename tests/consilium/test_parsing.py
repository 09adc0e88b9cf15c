"""What the help of the training verbs says."""

import re

import pytest

import callbacks
from consilium.cli.main import TRAINING, main

MODELS = ("ImageClassifier", "OneVsOneClassifier", "EnsembleModule")
SOURCES = ("Folders", "Table", "Mura", "Phantoms")
EXPLAINED = [
    ["--help"],
    ["--data.help", "datamodules.ImageDataModule"],
    *(["--model.help", f"lightning_modules.{name}"] for name in MODELS),
    *(["--data", "datamodules.ImageDataModule", "--data.source.help", f"datamodules.{name}"]
      for name in SOURCES),
    *(["--trainer.callbacks.help", f"callbacks.{name}"] for name in callbacks.__all__
      if name != "Board"),
    ["--trainer.logger.help", "callbacks.WandbLogger"],
]  # fmt: skip


def shown(capsys, *args):
    with pytest.raises(SystemExit, match=r"^0$"):
        main(list(args))
    return capsys.readouterr().out


@pytest.mark.parametrize("args", EXPLAINED, ids=" ".join)
def test_no_setting_is_shown_without_a_description(capsys, args):
    entries = re.split(r"\n  (?=-)", shown(capsys, "fit", *args))[1:]
    told = {each.split()[0]: re.split(r" {2,}|\n +", each, maxsplit=1)[1:] for each in entries}
    assert [name for name, said in told.items() if not said or said[0].startswith("(")] == []


@pytest.mark.parametrize("verb", TRAINING)
def test_help_names_the_commands_that_explain_data_and_model(capsys, verb):
    said = shown(capsys, verb, "--help")
    for command in EXPLAINED[1:3]:
        assert f"  consilium {verb} {' '.join(command)}\n" in said
    assert "will be downloaded" not in said
    assert "(required, type: str, default" not in said
