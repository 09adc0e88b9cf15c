"""What the front door says to a person: its help, and one line for an error."""

import argparse
from collections.abc import Iterable
from difflib import get_close_matches
from importlib import import_module
from types import ModuleType
from typing import NoReturn

import yaml

# what jsonargparse says beside the point: the types that it tried, and the whole of what it got
NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value",
)
LONGEST = 400  # characters of a line
UNNAMED = 'in "<unicode string>", '  # what yaml says of a text that it has no file of


class Parser(argparse.ArgumentParser):
    """One whose complaint is a line, without the usage."""

    def error(self, message: str) -> NoReturn:
        """Says what is wrong and where more is said, and ends with code 2."""
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def parser(verb: str, about: str | None, epilog: str | None = None) -> Parser:
    """The parser of a verb, which keeps the lines of what is said about it."""
    return Parser(
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


def unknown(verb: str, verbs: Iterable[str]) -> str:
    """What is said of a verb that there is not: the nearest ones, and all."""
    near = get_close_matches(verb, verbs, 2)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    return f"verb {verb!r} is not one of {', '.join(verbs)}{hint}"


def in_yaml(error: yaml.YAMLError) -> str:
    """What is wrong in a YAML file, with the file (where known), line and column."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"not YAML: {in_one_line(error)}"
    file = "" if mark.name == "<unicode string>" else f"{mark.name}, "
    problem = getattr(error, "problem", "")
    return f"not YAML: {file}line {mark.line + 1}, column {mark.column + 1}: {problem}"


def in_one_line(error: Exception) -> str:
    """What is wrong, on one line."""
    return " ".join(told(str(error)).split())


def told(said: str) -> str:
    """Of an error in a loader's worker only its last line, without torch's words around it."""
    caught = said.strip().startswith("Caught ")
    return said.strip().splitlines()[-1].split(": ", 1)[-1] if caught else said


def in_short(message: str) -> str:
    """An error of the parser without the types it tried in vain; a long line without its middle."""
    message = message.replace(UNNAMED, "at ").replace("Problems parsing config", "not YAML")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(_cut(line) for line in lines if line and not line.startswith(NOISE))


def _cut(line: str) -> str:
    half = LONGEST // 2 - 4
    return line if len(line) <= LONGEST else f"{line[:half]} [...] {line[-half:]}"
