"""YAML config files: reading, references to other files, merging."""

from pathlib import Path
from typing import Any

import yaml


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
    """A setting in which paths of YAML files, relative to `folder`, are replaced by their content.

    References in those files are resolved as well, relative to the file that contains them.
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


def merge(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """`base` updated by `changes`: mappings are merged key by key, other values are replaced."""
    merged = dict(base)
    for key, value in changes.items():
        are_mappings = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if are_mappings else value
    return merged
