"""The argument parser of the commands and the argument types that they share."""

import argparse
import os
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import torch

    from evaluation.predictions import Level, Rule

LEVEL_HELP = (
    "evaluate per image, study or patient; RULE pools the images of a study or patient: mean, "
    "max or noisy_or (image:mean)"
)


class ArgumentParser(argparse.ArgumentParser):
    """argparse's parser, whose errors are one line without the usage."""

    def error(self, message: str) -> NoReturn:
        """Prints the error and how to get help, and exits with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def argument_parser(command: str, description: str | None, epilog: str = "") -> ArgumentParser:
    """The parser of `consilium COMMAND`; line breaks of description and epilog are kept."""
    return ArgumentParser(
        f"consilium {command}",
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the columns of a table, or the patients of a folder, of `audit` and `init`."""
    for role, content in (("path", "image path"), ("label", "class"), ("split", "split")):
        parser.add_argument(
            f"--{role}", metavar="COLUMN", help=f"column of the {content} (found by name)"
        )
    parser.add_argument(
        "--patient",
        metavar="COLUMN|REGEX",
        help="column of the patient ID, or several with commas that identify a patient together; "
        "for a folder, a regular expression whose group is the patient: '(p[0-9]+)_'",
    )


def device(text: str) -> "torch.device":
    """Argument type: cpu, cuda, cuda:N, or auto (a GPU if there is one)."""
    import torch

    gpus = range(torch.cuda.device_count())
    allowed = ["auto", "cpu", *["cuda"][: len(gpus)], *(f"cuda:{index}" for index in gpus)]
    if text not in allowed:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(allowed)}")
    return torch.device(("cuda" if gpus else "cpu") if text == "auto" else text)


def fraction(text: str) -> float:
    """Argument type: a number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def positive_int(text: str) -> int:
    """Argument type: an integer of at least 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value


def level(text: str) -> "tuple[Level, Rule]":
    """Argument type: image, study or patient, with an optional rule as in study:max."""
    from evaluation.predictions import parse_level

    try:
        return parse_level(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def set_openmp_wait_policy() -> None:
    """Lets OpenMP threads spin only briefly before they sleep; to be called before torch is loaded.

    Long spinning makes a machine with other work ten times slower; sleeping at once makes an idle
    one slower by a quarter. Only GNU's OpenMP has a spin count. Variables that are set are kept.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
