"""What the front door says to a person: its help, and one line for an error."""

import argparse
from importlib import import_module
from types import ModuleType

# what jsonargparse says beside the point: the types that it tried, and the whole of what it got
NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value",
)
LONGEST = 400  # characters of a line


def parser(verb: str, about: str | None, epilog: str | None = None) -> argparse.ArgumentParser:
    """The parser of a verb, which keeps the lines of what is said about it."""
    return argparse.ArgumentParser(
        f"consilium {verb}",
        description=about,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def needed(module: str, extra: str) -> ModuleType:
    """A module that needs an extra, or one line that says how to get it."""
    try:
        return import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise ImportError(f"{missing} is missing: pip install 'consilium[{extra}]'") from error


def usage(verbs: dict[str, str]) -> str:
    """Every verb with one line."""
    lines = [f"  {verb:<10} {what}" for verb, what in verbs.items()]
    head = "usage: consilium VERB [ARGUMENTS]\n\nVision backbones look at one image and vote.\n"
    tail = "consilium VERB --help explains a verb; --debug anywhere shows where an error arose."
    return "\n".join([head, *lines, "", tail])


def in_one_line(error: Exception) -> str:
    """What is wrong, on one line."""
    return " ".join(told(str(error)).split())


def told(said: str) -> str:
    """Of an error in a loader's worker only its last line, without torch's words around it."""
    caught = said.strip().startswith("Caught ")
    return said.strip().splitlines()[-1].split(": ", 1)[-1] if caught else said


def in_short(message: str) -> str:
    """An error of the parser without the types it tried in vain; a long line without its middle."""
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(_cut(line) for line in lines if line and not line.startswith(NOISE))


def _cut(line: str) -> str:
    half = LONGEST // 2 - 4
    return line if len(line) <= LONGEST else f"{line[:half]} [...] {line[-half:]}"
