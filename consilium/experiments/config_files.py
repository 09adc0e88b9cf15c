"""Config files as they are written: YAML, with what stands in other files in its place."""

from pathlib import Path
from typing import Any

import yaml


def content(file: Path) -> object:
    """What a YAML file says; None where it is empty. An error says the file, line and column."""
    try:
        return yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.MarkedYAMLError as error:
        at = error.problem_mark
        where = f", line {at.line + 1}, column {at.column + 1}" if at else ""
        raise ValueError(f"{file}{where}: no YAML: {error.problem}") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{file}: no YAML in UTF-8: {str(error).splitlines()[0]}") from None


def mapping(file: Path) -> dict[str, Any]:
    """The settings of a config file."""
    if not file.is_file():
        raise ValueError(f"{file}: no such config")
    said = content(file) or {}
    if not isinstance(said, dict):
        raise ValueError(f"{file}: a {type(said).__name__}, not a mapping of settings")
    return said


def whole(folder: Path, said: object) -> object:
    """A setting with what stands in other configs, which are told from where they are named."""
    if isinstance(said, dict):
        return {key: whole(folder, value) for key, value in said.items()}
    if isinstance(said, str) and said.endswith((".yaml", ".yml")):
        return whole((folder / said).parent, mapping(folder / said))
    return said


def merged(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """Settings over settings: mappings key by key, all else is replaced."""
    out = dict(one)
    for key, value in other.items():
        both = isinstance(value, dict) and isinstance(out.get(key), dict)
        out[key] = merged(out[key], value) if both else value
    return out
