"""Arguments and argument types that several commands share.

Help is printed without torch: modules of commands import what needs it within their functions.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from evaluation.predictions import Level, Rule

LEVEL_HELP = ("evaluate per image, study or patient; RULE pools the images of a study or patient: "
              "mean, max or noisy_or (image:mean)")  # fmt: skip


def add_dataset_arguments(parser: argparse.ArgumentParser, nargs: str | None = None) -> None:
    """Adds the dataset of `audit` and `init`: a folder, or a table and its columns."""
    add = parser.add_argument
    help_ = "folder of images, or table with one row per image"
    add("target", nargs=nargs, type=Path, metavar="FOLDER|TABLE", help=help_)
    for role, content in (("path", "image path"), ("label", "class"), ("split", "split")):
        help_ = f"column of the {content}; none: there is no such column (found by name)"
        add(f"--{role}", metavar="COLUMN", help=help_)
    help_ = ("column of the patient ID, or several with commas that identify a patient together; "
             "for a folder, a regex whose group is the patient: '(p[0-9]+)_'")  # fmt: skip
    add("--patient", metavar="COLUMN|REGEX", help=help_)


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


def positive_float(text: str) -> float:
    """Argument type: a number above 0."""
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def level(text: str) -> "tuple[Level, Rule]":
    """Argument type: image, study or patient, with an optional rule as in study:max."""
    from evaluation.predictions import parse_level

    try:
        return parse_level(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
