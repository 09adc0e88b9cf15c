"""Provenance of a run: the resolved settings of its command and digests of its inputs."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from consilium.config_files import read_config, resolve_references
from consilium.experiments.members import flatten_settings
from evaluation.files import read_json, write_json

FILE = ".provenance.json"
MAX_LENGTH = 60  # characters of a value in a message
# settings of where and how fast a run works, which do not change its result
IGNORED = (
    "trainer.accelerator", "trainer.logger", "trainer.enable_", "trainer.profiler",
    "data.init_args.num_workers", "data.init_args.pin_memory", "data.init_args.prefetch_factor",
    "data.init_args.cache",
)  # fmt: skip


@dataclass(frozen=True)
class Provenance:
    """What a run was made from."""

    settings: dict[str, str]  # of its command, as text by dotted name
    inputs: dict[str, str]  # digest of the result of each run that it needs, by the run's name
    threads: int = 0  # of OpenMP, on which the last bits depend; 0 is the environment's number

    def write(self, folder: Path) -> None:
        """Writes .provenance.json to a run folder."""
        write_json(folder / FILE, asdict(self))

    def difference(self, current: "Provenance") -> str:
        """The first difference of `current` from this provenance as text, "" if there is none."""
        for name in dict.fromkeys([*current.settings, *self.settings]):
            before, now = self.settings.get(name), current.settings.get(name)
            if before != now and not name.startswith(IGNORED):
                return _describe_change(name, before, now)
        for name, digest in current.inputs.items():
            if self.inputs.get(name) != digest:
                return f"from another {name}"
        return ""


def read_provenance(folder: Path) -> Provenance | None:
    """The provenance in a run folder; None without one, as after a command typed by hand."""
    file = folder / FILE
    return Provenance(**read_json(file)) if file.is_file() else None


def file_digest(file: Path) -> str:
    """SHA-256 of a file, "" if there is none."""
    return _digest(file, file.stat().st_mtime_ns) if file.is_file() else ""


@cache
def _digest(file: Path, modified: int) -> str:
    """SHA-256 of a file; a new time `modified` is a new cache key, so the file is read again."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def read_settings(command: list[str]) -> dict[str, str]:
    """Settings of a command and its config files as text by dotted name.

    Later values replace earlier ones; those of `name+` are appended.
    """
    settings: dict[str, Any] = {"command": command[0]}
    for name, value in _given_settings(command[1:]):
        is_appended = name.endswith("+") and isinstance(value, list)
        settings[name] = [*settings.get(name, []), *value] if is_appended else value
    return {
        name: value if isinstance(value, str) else json.dumps(value, default=str)
        for name, value in _split_lists(settings)
    }


def _given_settings(arguments: list[str]) -> Iterator[tuple[str, Any]]:
    """Yields name and value of the settings in each config file and option, in their order."""
    for name, values in _options(arguments):
        if name == "config":
            contents = [(Path(file).parent, read_config(Path(file))) for file in values]
        else:
            contents = [(Path(), {name: _parse_values(values)})]
        for folder, content in contents:
            resolved = {k: resolve_references(folder, value) for k, value in content.items()}
            yield from flatten_settings(resolved, split_classes=True)


def _options(arguments: list[str]) -> list[tuple[str, list[str]]]:
    """(name, values) of each `--name value ...` or `--name=value`; ("", values) of those before."""
    options: list[tuple[str, list[str]]] = [("", [])]
    for argument in arguments:
        if argument.startswith("--"):
            name, has_value, value = argument[2:].partition("=")
            options.append((name, [value] if has_value else []))
        else:
            options[-1][1].append(argument)
    return options if options[0][1] else options[1:]


def _parse_values(values: list[str]) -> object:
    """A single value as YAML, as the command reads it; several as a list of texts."""
    try:
        return yaml.safe_load(values[0]) if len(values) == 1 else values
    except yaml.YAMLError:
        return values[0]


def _split_lists(settings: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yields settings; a list of mappings as `name.0`, `name.1`, so that a difference is short."""
    for name, value in settings.items():
        if isinstance(value, list) and any(isinstance(item, dict) for item in value):
            items = {f"{name}.{index}": item for index, item in enumerate(value)}
            yield from _split_lists(dict(flatten_settings(items, split_classes=True)))
        else:
            yield name, value


def _describe_change(name: str, before: str | None, now: str | None) -> str:
    """`with NAME BEFORE, the experiment has NOW`; None for a value that is not set."""
    if before is None:
        return f"without {name}, the experiment has {_shorten(now)}"
    current = "does not have it" if now is None else f"has {_shorten(now)}"
    return f"with {name} {_shorten(before)}, the experiment {current}"


def _shorten(value: str | None) -> str:
    """The value cut to MAX_LENGTH characters."""
    text = str(value)
    return text if len(text) <= MAX_LENGTH else f"{text[: MAX_LENGTH - 3]}..."
