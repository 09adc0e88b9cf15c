"""Types of arguments that verbs share: a device of this machine, numbers in their range."""

import argparse

import torch


def device(text: str) -> torch.device:
    """The processor or a GPU of this machine, as the type of an argument; auto: a GPU if any."""
    gpus = range(torch.cuda.device_count())
    allowed = ["auto", "cpu", *["cuda"][: len(gpus)], *(f"cuda:{at}" for at in gpus)]
    if text not in allowed:
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {', '.join(allowed)} here")
    return torch.device(("cuda" if gpus else "cpu") if text == "auto" else text)


def share(text: str) -> float:
    """A number from 0 to 1."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not from 0 to 1")
    return value


def positive(text: str) -> int:
    """A whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return value
