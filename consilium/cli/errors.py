"""Runs a command and turns its errors into one line and an exit code."""

import sys
import traceback
from collections.abc import Callable

import yaml

from consilium.config_files import worker_error
from consilium.training.run_lock import EXIT_INTERRUPTED, RunStopped

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
    except yaml.YAMLError as error:
        message, code = yaml_message(error), USAGE_ERROR
    except ImportError as error:
        message, code = import_message(error), USAGE_ERROR
    except (ValueError, OSError) as error:
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


def yaml_message(error: yaml.YAMLError) -> str:
    """What is wrong in a YAML text, with file (if known), line and column."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"invalid YAML: {one_line(error)}"
    file = "" if mark.name == "<unicode string>" else f"{mark.name}, "
    problem = getattr(error, "problem", "")
    return f"invalid YAML: {file}line {mark.line + 1}, column {mark.column + 1}: {problem}"
