"""The command line: a table of commands, each with its own module."""

import importlib
import sys
from importlib.metadata import version

from consilium.cli.errors import run_command
from consilium.cli.options import set_openmp_wait_policy
from consilium.config_files import suggestion

TRAINING = {
    "fit": "train a model and evaluate its best epoch on the val split",
    "validate": "evaluate a checkpoint on the val split",
    "test": "evaluate a checkpoint or an ensemble on the test split",
    "predict": "write the predictions of a split to a table; labels are optional",
}
COMMANDS = TRAINING | {
    "experiment": "train and evaluate several models and their ensemble from one file",
    "ensemble": "fit voters on val predictions and evaluate them on test predictions",
    "compare": "compare models: metrics, per-class results, diversity, paired tests",
    "inspect": "show what is stored in a checkpoint and verify its weights",
    "prune": "remove channels from a trained model, fine-tune it, compare with the original",
    "audit": "find leaks, duplicates, corrupt files and confounds in a dataset",
    "init": "write config files for a dataset",
    "cache": "list, build or delete caches of preprocessed images",
    "explain": "write saliency maps of a model or ensemble",
    "serve": "start a web page and a REST API for a model or ensemble",
    "export": "export models to ONNX, torch.export or safetensors",
    "backbones": "list backbones with parameters, MACs, license and CAM layer",
}
USAGE = """\
usage: consilium COMMAND [ARGUMENTS]

Train image classifiers for medical research, combine them into ensembles, and evaluate
them with confidence intervals.

commands:
{commands}

examples:
  consilium experiment run configs/experiments/demo.yaml
  consilium fit --config configs/base.yaml --config configs/demo/resnet10t.yaml --run runs/first

consilium COMMAND --help describes a command; --debug anywhere shows the traceback of an error."""


def run(args: list[str]) -> int:
    """Runs the command `args[0]` and returns its exit code; errors are raised."""
    command, rest = args[0], args[1:]
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command!r}{suggestion(command, list(COMMANDS))}")
    if command in TRAINING:
        return int(importlib.import_module("consilium.training.lightning_cli").run_training(args))
    return int(importlib.import_module(f"consilium.cli.{command}").run(rest))


def main(argv: list[str] | None = None) -> int:
    """Runs a command (default: sys.argv); an error is one line, with --debug also a traceback."""
    set_openmp_wait_policy()
    given = sys.argv[1:] if argv is None else argv
    args = [arg for arg in given if arg != "--debug"]
    if not args or args[0] in ("-h", "--help", "help"):
        lines = [f"  {command:<10}  {summary}" for command, summary in COMMANDS.items()]
        print(USAGE.format(commands="\n".join(lines)))
        return 0
    if args[0] == "--version":
        print(f"consilium {version('consilium')}")
        return 0
    return run_command(run, args, debug="--debug" in given)
