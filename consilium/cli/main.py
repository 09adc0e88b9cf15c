"""The command line: a table of commands, their parser, and errors of one line."""

import argparse
import importlib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from yaml import YAMLError

from consilium import ROOT, reuse_freed_memory
from consilium.config_files import find_packaged, suggestion, worker_error
from consilium.training import COMMANDS as TRAINING
from consilium.training.command_help import help_text
from consilium.training.run_lock import EXIT_INTERRUPTED, RunStopped, refuse_used_run

LIBRARIES = ("callbacks", "datamodules", "evaluation", "lightning_modules")
USAGE_ERROR = 2  # exit code of invalid input, as argparse has it
EXTRAS = {  # optional module -> the extra of this package that installs it
    **dict.fromkeys(("fastapi", "prometheus_client", "pydantic", "starlette", "uvicorn"), "serve"),
    **dict.fromkeys(("multipart", "python_multipart"), "serve"),
    **dict.fromkeys(("onnx", "onnxruntime", "onnxscript"), "onnx"),
    "pydicom": "dicom",
    "pynvml": "energy",
    "ray": "ray",
    "torch_pruning": "prune",
}
COMMANDS = TRAINING | {
    "experiment": "train and evaluate several models and their ensemble from one file",
    "ensemble": "fit voters on val predictions and evaluate them on test predictions",
    "compare": "compare models: metrics, per-class results, diversity, paired tests",
    "card": "write a model card and reporting checklists from the files of a run",
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

consilium COMMAND --help describes a command; --debug anywhere shows the traceback of an error;
--import MODULE anywhere imports a module of yours, for checkpoints of classes that are in it."""
MODULES = "CONSILIUM_IMPORT"  # environment variable


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser that keeps line breaks of texts; errors are one line without the usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, **options)

    def error(self, message: str) -> NoReturn:
        """Prints the error and how to get help, and exits with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def run(args: list[str], modules: Sequence[str] = ()) -> int:
    """Runs the command `args[0]` and returns its exit code; errors are raised.

    Classes in `modules`, which are imported first, can be loaded from checkpoints.
    """
    command = args[0]
    for module in modules:
        importlib.import_module(module)
    if modules:
        os.environ[MODULES] = ",".join(modules)  # for the runs of an experiment
    if command not in COMMANDS:
        raise ValueError(f"unknown command {command!r}{suggestion(command, list(COMMANDS))}")
    if command in TRAINING and args[1:] in (["-h"], ["--help"]):
        print(help_text(command))
        return 0
    if command == "fit":
        refuse_used_run(args[1:])
    if command == "test" and args[1:] and not args[1].startswith("-"):
        external = importlib.import_module("consilium.training.external")
        return int(external.run_external(args[1:]))
    if command in TRAINING:
        return int(importlib.import_module("consilium.training.lightning_cli").run_training(args))
    options = parse_arguments(command, args[1:])
    return int(importlib.import_module(f"consilium.cli.{command}").run(options))


def parse_arguments(command: str, args: Sequence[str]) -> argparse.Namespace:
    """The values of a command's arguments.

    A flag such as `--image-size` can also be written `--image_size`, as Lightning's flags are.
    """

    def with_dashes(arg: str) -> str:
        """`--image_size=64` as `--image-size=64`."""
        name, *value = arg.partition("=")
        return "".join([name.replace("_", "-"), *value]) if arg.startswith("--") else arg

    return command_parser(command).parse_args([with_dashes(arg) for arg in args])


def command_parser(command: str) -> ArgumentParser:
    """The parser of a command's arguments; the docstring of the command's module describes it."""
    module = importlib.import_module(f"consilium.cli.{command}")
    parser = ArgumentParser(prog=f"consilium {command}", description=module.__doc__)
    module.add_arguments(parser)
    return parser


def run_command(run: Callable[[list[str]], int], args: list[str], debug: bool = False) -> int:
    """Runs the command `args[0]` and returns its exit code.

    An error is printed to stderr as one line; with `debug` after its traceback.
    """
    try:
        return run(args)
    except RunStopped as error:
        message, code = str(error), error.code
    except KeyboardInterrupt:
        message, code = "interrupted", EXIT_INTERRUPTED
    except ImportError as error:
        message, code = import_message(error), USAGE_ERROR
    except (ValueError, OSError, YAMLError) as error:
        message, code = one_line(error), USAGE_ERROR
    if debug:
        traceback.print_exc()
    print(f"consilium {args[0]}: {message}", file=sys.stderr)
    return code


def one_line(error: Exception) -> str:
    """The message of an error without line breaks."""
    return " ".join(worker_error(str(error)).split())


def import_message(error: ImportError) -> str:
    """The pip command if an optional dependency is missing, else the error's own message."""
    module = (error.name or "").partition(".")[0]
    if isinstance(error, ModuleNotFoundError) and module in EXTRAS:
        return f"{module} is not installed: pip install 'consilium[{EXTRAS[module]}]'"
    return one_line(error)


def set_openmp_wait_policy() -> None:
    """Lets OpenMP threads spin only briefly before they sleep; to be called before torch is loaded.

    Long spinning makes a machine with other work ten times slower; sleeping at once makes an idle
    one slower by a quarter. Only GNU's OpenMP has a spin count. Variables that are set are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"


def find_hiding_package() -> str:
    """A message if Python finds another package by the name of one of ours, else ""."""
    for name in LIBRARIES:
        spec = find_spec(name)
        folders = (spec.submodule_search_locations if spec else None) or []
        place = next(iter(folders), str(spec and spec.origin))
        if Path(place).resolve() != ROOT / name:
            remedy = "remove it from PYTHONPATH or the working directory, or reinstall Consilium"
            return f"{name}: {place} hides the package of that name of Consilium; {remedy}"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Runs a command (default: sys.argv); an error is one line, with --debug also a traceback."""
    set_openmp_wait_policy()
    reuse_freed_memory()
    for folder in (str(ROOT), str(Path.cwd())):  # last, so that no file there hides a library
        if folder not in sys.path:
            sys.path.append(folder)
    argv = list(map(find_packaged, sys.argv[1:] if argv is None else argv))
    if other := find_hiding_package():
        print(f"consilium: {other}", file=sys.stderr)
        return USAGE_ERROR
    options, args = _general_parser().parse_known_args(argv)
    if not args or args[0] in ("-h", "--help", "help"):
        lines = [f"  {command:<10}  {summary}" for command, summary in COMMANDS.items()]
        print(USAGE.format(commands="\n".join(lines)))
        return 0
    if args[0] == "--version":
        print(f"consilium {version('consilium')}")
        return 0
    return run_command(partial(run, modules=options.modules), args, options.debug)


def _general_parser() -> ArgumentParser:
    """The parser of the arguments that every command takes, anywhere on the command line."""
    parser = ArgumentParser(prog="consilium", add_help=False, allow_abbrev=False)
    inherited = [name for name in os.environ.get(MODULES, "").split(",") if name]
    parser.add_argument("--import", dest="modules", action="append", default=inherited)
    parser.add_argument("--debug", action="store_true")
    return parser
