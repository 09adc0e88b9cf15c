"""YAML config files: reading, references, merging, and parser errors on one line."""

import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import yaml
from jsonargparse import ArgumentParser

from consilium import CONFIGS


def read_yaml(file: Path) -> object:
    """The content of a YAML file; None if it is empty. Errors name file, line and column."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ValueError(f"{file}{place}: invalid YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file}: not YAML in UTF-8: {str(error).splitlines()[0]}") from None


def read_config(file: Path) -> dict[str, Any]:
    """The settings of a config file, references to other files unresolved."""
    if not file.is_file():
        raise ValueError(f"{file}: no such config file")
    content = read_yaml(file) or {}
    if not isinstance(content, dict):
        raise ValueError(f"{file}: a {type(content).__name__}, not a mapping of settings")
    return content


def resolve_references(folder: Path, value: object) -> object:
    """A setting with paths of YAML files replaced by their content, in those files as well.

    A path is relative to `folder`, or to the file that contains it.
    """
    if isinstance(value, dict):
        return {key: resolve_references(folder, item) for key, item in value.items()}
    if is_reference(value):
        file = folder / str(value)
        return resolve_references(file.parent, read_config(file))
    return value


def is_reference(value: object) -> bool:
    """Whether a setting is the path of a YAML file."""
    return isinstance(value, str) and value.endswith((".yaml", ".yml"))


def find_packaged(argument: str) -> str:
    """The argument with `configs/...` as the path of the shipped file, unless that path exists."""
    option, equals, value = argument.rpartition("=")
    file = CONFIGS.parent / value
    is_ours = is_reference(value) and value.startswith(f"{CONFIGS.name}/") and file.is_file()
    return f"{option}{equals}{file}" if is_ours and not Path(value).exists() else argument


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` updated by `changes`: mappings are merged key by key, other values are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        are_mappings = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if are_mappings else value
    return merged


# lines that list every type tried, or repeat the input
NOISE = (
    "Does not validate",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Given value",
)
MAX_LINE = 400  # characters
UNKNOWN_KEY = re.compile(  # the groups of a match, joined by dots, are the key
    r"(?:Group '([\w.]+)'|Subcommand '\w+') does not accept option '([\w.+]+)'"
    r"|Option '([\w.+]+)' is not accepted|[Uu]nrecognized arguments: --([\w.+]+)"
)
UNKNOWN_CLASS = re.compile(r"module '([\w.]+)' has no attribute '(\w+)'")
MISSING_FILE = re.compile(r"Expected a path but (\S+) either not accessible")
NO_CLASS = re.compile(
    r"Not a valid subclass of \w+\. Got value: ([^\n]*)|Expected a dot import path string: ([^\n]*)"
)
CLASSES = {  # key -> an example of the classes that it can be set to
    "callbacks": "callbacks.EMA",
    "data": "datamodules.ImageDataModule",
    "model": "lightning_modules.ImageClassifier",
    "source": "datamodules.Folders",
}
WRONG_TYPE = re.compile(r"Expected (?:an? )?(<class '[\w.]+'>|typing\.[\w.]+\[.*?\]|[\w.]+\[.*?\])")
GIVEN_VALUE = re.compile(r"(?:Got|Given) value: ([^\n]*)")
CLASS_PATH = re.compile(r"Problem with given class_path '([\w.]+)'")
PARSER_KEY = re.compile(r'Parser key "([\w.+]+)":?')


def explain_parser_error(
    message: str, files: Sequence[Path], keys: Iterable[str], args: Sequence[str] = ()
) -> str:
    """One line for an error of jsonargparse that names the file and the key where known.

    `files` are the config files in the order of parsing, `keys` the allowed dotted keys, and `args`
    the arguments of the command line.
    """
    if match := UNKNOWN_KEY.search(message):
        return _unknown_key_message(match, files, list(keys), args)
    if match := UNKNOWN_CLASS.search(message):
        return _unknown_class_message(match[1], match[2], files)
    matches = list(PARSER_KEY.finditer(message))
    if not matches:
        return _read_error(files) or shorten_parser_error(message)
    key, reason = matches[-1][1], message[matches[-1].end() :]
    if (match := NO_CLASS.search(reason)) and not is_reference(value := match[1] or match[2]):
        return f"{source_file(files, key, value)}: {key}: {_class_path_message(key, value)}"
    if match := MISSING_FILE.search(reason):
        file = source_file(files, key, match[1])
        if not (Path(file).parent / match[1]).is_file():
            return f"{file}: {key}: no such file: {match[1]}"
        return _read_error(files)
    if expected := _expected_types(message):
        value = GIVEN_VALUE.findall(message)[0]
        return f"{source_file(files, key, value)}: {key}: expected {expected}, got {value!r}"
    is_argument = any(arg.startswith("--") and f".{key}" in arg.partition("=")[0] for arg in args)
    source = "command line" if is_argument else source_file(files, key)
    return _read_error(files) or f"{source}: {key}: {shorten_parser_error(reason)}"


def shorten_parser_error(message: str) -> str:
    """A jsonargparse error on one line, without the types that were tried; long lines are cut."""
    message = worker_error(message).replace('in "<unicode string>", ', "at ")
    message = message.replace("Problems parsing config", "invalid YAML")
    lines = [line.strip().removeprefix("- ") for line in message.splitlines()]
    return " ".join(_shorten_line(line) for line in lines if line and not line.startswith(NOISE))


def worker_error(message: str) -> str:
    """The original message of an error from a DataLoader worker; other messages unchanged."""
    is_from_worker = message.strip().startswith("Caught ")
    return message.strip().splitlines()[-1].split(": ", 1)[-1] if is_from_worker else message


def suggestion(name: str, allowed: Sequence[str]) -> str:
    """`; did you mean 'x'?` for the nearest allowed name, else `; allowed are ...`."""
    same_end = [key for key in allowed if key.split(".")[-1] == name.split(".")[-1]]
    very_close, close = (get_close_matches(name, allowed, 1, cutoff) for cutoff in (0.8, 0.5))
    if nearest := [*very_close, *same_end, *close]:
        return f"; did you mean {nearest[0]!r}?"
    return f"; allowed are {', '.join(allowed)}" if allowed else ""


def class_keys(class_path: str) -> list[str]:
    """Dotted names of a class's constructor arguments, those of nested dataclasses included."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(resolve_name(class_path))
    return list(parser.get_defaults().keys())


def source_file(files: Sequence[Path], key: str, value: str | None = None) -> str:
    """Path of the last file that sets a key (to `value`, if given), else "command line"."""
    last = key.removesuffix("+").split(".")[-1]
    for file in reversed(files):
        content = read_yaml(file) if file.is_file() else None
        if source := _find_key(file, content, last, value):
            return str(source)
    return "command line"


def _find_key(file: Path, content: object, key: str, value: str | None) -> Path | None:
    """The file in which the key is set: `file` with this content, or one that it refers to."""
    if is_reference(content):
        file = file.parent / str(content)
        content = read_yaml(file) if file.is_file() else None
    if isinstance(content, list):
        content = dict(enumerate(content))
    if not isinstance(content, dict):
        return None
    for name, item in content.items():
        if key in str(name).removesuffix("+").split(".") and value in (None, str(item)):
            return file
        if source := _find_key(file, item, key, value):
            return source
    return None


def _unknown_key_message(
    match: re.Match[str], files: Sequence[Path], keys: list[str], args: Sequence[str]
) -> str:
    """The message on the unknown key that UNKNOWN_KEY matched, with the nearest allowed key."""
    key = ".".join(filter(None, match.groups()))
    class_paths = CLASS_PATH.findall(match.string[: match.start()])
    allowed = class_keys(class_paths[-1]) if class_paths else keys
    owner = f" of {class_paths[-1]}" if class_paths else ""
    arguments = [arg.partition("=")[0].replace(".init_args.", ".") for arg in args]
    is_argument = any(arg in (f"--{key}", f"--model.{key}", f"--data.{key}") for arg in arguments)
    unknown = _unknown_segment(key, allowed)
    file = "command line" if is_argument else source_file(files, unknown)
    return f"{file}: unknown key {key!r}{owner}{suggestion(key, allowed)}"


def _unknown_segment(key: str, allowed: Sequence[str]) -> str:
    """The first segment of a dotted key that no allowed key has at its place."""
    segments = key.split(".")
    for length, segment in enumerate(segments, 1):
        if not any(name.split(".")[:length] == segments[:length] for name in allowed):
            return segment
    return segments[-1]


def _unknown_class_message(module: str, name: str, files: Sequence[Path]) -> str:
    """The message on a `class_path` MODULE.NAME that does not exist, with the nearest class."""
    members = vars(resolve_name(module))
    classes = [item for item, value in members.items() if isinstance(value, type)]
    file = source_file(files, "class_path", f"{module}.{name}")
    return f"{file}: no class {name!r} in {module}{suggestion(name, classes)}"


def _class_path_message(key: str, value: str) -> str:
    """The message on a value that must be a mapping with `class_path`, with an example."""
    example = CLASSES.get(key.split(".")[-1])
    class_path = f"class_path, such as {example}," if example else "class_path"
    return f"{value} is no class: give {class_path} and init_args, or a YAML file of both"


def _expected_types(message: str) -> str:
    """The types that an error expects: `int or one of 'a', 'b'`; "" if it is not about a type."""
    types = WRONG_TYPE.findall(message)  # <class 'int'>, typing.Literal['a', 'b']
    names = [re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", name) for name in types]
    names = [re.sub(r"typing\.Literal\[(.*)\]", r"one of \1", name) for name in names]
    return " or ".join(name for name in dict.fromkeys(names) if name != "NoneType")


def _read_error(files: Sequence[Path]) -> str:
    """The error of the first config file, or file that one refers to, that is invalid; else ""."""
    for file in files:
        try:
            resolve_references(file.parent, read_config(file))
            if read_yaml(file) is None:
                return f"{file}: the file is empty"
        except ValueError as error:
            return str(error)
    return ""


def _shorten_line(line: str) -> str:
    """The line without its middle if it has more than MAX_LINE characters."""
    half = MAX_LINE // 2 - 4
    return line if len(line) <= MAX_LINE else f"{line[:half]} [...] {line[-half:]}"
