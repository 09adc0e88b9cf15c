"""The commands of README.md, run as they are written."""

import re
import shlex
from pathlib import Path

import pytest

from consilium.cli.main import command_parser, main
from consilium.inference import data_config
from tests.conftest import REQUIRED

ROOT = Path(__file__).parents[1]
SHORT_FIT = ["--trainer.max_epochs", "2", "--trainer.limit_train_batches", "2"]
REPLACED = {  # outputs of the demo experiment -> those of earlier commands; a dataset of the reader
    "[runs/demo/members/*]": "[runs/resnet10t]",
    "runs/demo/ensemble": "runs/ensemble",
    "runs/demo/members/resnet10t": "runs/resnet10t",
    "PATH/labels.csv": "data/phantoms/*/manifest.csv",
    "PATH/hospital_b.csv": "hospital_b.yaml",
}
NOT_RUN = {  # commands that take minutes, GPUs or a cluster are parsed only
    "experiment run mine/mine.yaml": ["--dry-run"],
    "--engine ray": ["--dry-run"],
    "configs/trainer/ddp.yaml": ["--print_config"],
}


def readme_commands() -> list[str]:
    """Every consilium line of the code blocks, except one that needs a well-trained model."""
    lines = re.findall(r"^\s*\.venv/bin/consilium (.*)$", (ROOT / "README.md").read_text(), re.M)
    return [line for line in lines if "--measure" not in line]


def arguments(line: str) -> list[str]:
    """The arguments of a line, wildcards expanded to their first match, and shortened."""
    for text, replacement in REPLACED.items():
        line = line.replace(text, replacement)
    words = []
    for word in shlex.split(line):
        is_pattern = "*" in word and "/" in word
        words += sorted(map(str, Path().glob(word)))[:1] if is_pattern else [word]
    added = [flags for text, flags in NOT_RUN.items() if text in line]
    return words + (added[0] if added else SHORT_FIT if words[0] == "fit" else [])


@pytest.mark.exhaustive
def test_commands_of_the_readme_run_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    data_config.load_datamodule(["configs/data/fracture_phantom.yaml"]).prepare_data()
    data = (ROOT / "configs/data/fracture_phantom.yaml").read_text()
    Path("hospital_b.yaml").write_text(data.replace("image_size: 64", "image_size: 64, seed: 7"))
    commands = set()
    for line in readme_commands():
        args = arguments(line)
        if args[0] == "serve":  # runs until it is stopped; test_serve_process does that
            assert command_parser("serve").parse_args(args[1:])
        elif "--print_config" in args:
            with pytest.raises(SystemExit, match=r"^0$"):
                main(args)
        else:
            assert main(args) == 0, (args, capsys.readouterr().err)
        commands.add(args[0])
    training, data = {"fit", "test", "experiment", "prune"}, {"audit", "init"}
    assert commands == training | data | {"card", "explain", "serve", "export"}
    assert (tmp_path / "runs" / "ensemble" / "ensemble.json").is_file()
    assert (tmp_path / "runs/resnet10t/external/hospital_b/external.html").is_file()
    assert list((tmp_path / "runs" / "maps").glob("*.png"))
    assert len(list((tmp_path / "runs").glob("*/wandb/offline-run-*/*.wandb"))) == 1


def test_ci_runs_the_readmes_test_command_with_the_exhaustive_tests():
    assert re.search(r"^python3 -m venv .*pytest$", (ROOT / "README.md").read_text(), re.M)
    script = (ROOT / ".ci/run").read_text()
    assert "README.md" in script
    assert "eval \"$command -m ''" in script


def test_ci_skips_no_test_if_the_browser_is_missing():
    """Without the variable, those tests are skipped on a machine without a browser."""
    assert f"export {REQUIRED}=1\n" in (ROOT / ".ci/run").read_text()
