"""What a run was made with, kept in its folder: its command's settings, config files read through.

A run whose command would say something else today is not what its study asks for.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from consilium.experiments.config_files import mapping, whole
from evaluation.files import read_json, write_json

FILE = ".made.json"
LONGEST = 60  # characters of a value in a message
# where and how fast a run works, not what it finds
ASIDE = (
    "trainer.accelerator", "trainer.logger", "trainer.enable_", "trainer.profiler",
    "data.init_args.workers", "data.init_args.reading.cache", "data.init_args.reading.prefetch",
    "data.init_args.reading.pin",
)  # fmt: skip


@dataclass(frozen=True)
class Made:
    """What a run was made with.

    Args:
        told: its command's settings as text by dotted name.
        of: a digest of what each run that it needs had found, by the run's name.
    """

    told: dict[str, str]
    of: dict[str, str]

    def write(self, folder: Path) -> None:
        """Keeps it in the run's folder."""
        write_json(folder / FILE, asdict(self))

    def difference(self, now: "Made") -> str:
        """The first thing that is not as it is told now, in words; "" where there is none."""
        for name in dict.fromkeys([*now.told, *self.told]):
            was, told = self.told.get(name), now.told.get(name)
            if was != told and not name.startswith(ASIDE):
                return _in_words(name, was, told)
        others = [name for name, found in now.of.items() if self.of.get(name) != found]
        return f"of another {others[0]}" if others else ""


def kept(folder: Path) -> Made | None:
    """What a run was made with; None where nobody wrote it down, as of a command typed by hand."""
    file = folder / FILE
    return Made(**read_json(file)) if file.is_file() else None


def digest(file: Path) -> str:
    """Of what a run found; "" where it is gone."""
    return _digest(file, file.stat().st_mtime_ns) if file.is_file() else ""


@cache
def _digest(file: Path, written: int) -> str:
    """The file is read again only when it was written anew."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def told(command: list[str]) -> dict[str, str]:
    """Every setting of a command; later ones win, and what is appended (`name+`) adds up."""
    found: dict[str, Any] = {"command": command[0]}
    for name, value in _settings(command[1:]):
        found[name] = [*found.get(name, []), *value] if _appended(name, value) else value
    return {name: _text(value) for name, value in _leaves(found)}


def _settings(words: list[str]) -> Iterator[tuple[str, Any]]:
    """Settings as they follow one another: each config's, and each option's values."""
    for name, values in _options(words):
        if name == "config":
            for file in values:
                yield from _flat(whole(Path(file).parent, mapping(Path(file))))
        else:
            given = whole(Path(), _parsed(values))
            yield from _flat({name: given})


def _options(words: list[str]) -> Iterator[tuple[str, list[str]]]:
    """`--name value ...` and `--name=value`; what stands before any option has no name."""
    name, values = "", list[str]()
    for word in words:
        if not word.startswith("--"):
            values.append(word)
            continue
        if values or name:
            yield name, values
        name, same, value = word[2:].partition("=")
        values = [value] if same else []
    yield name, values


def _parsed(values: list[str]) -> object:
    """One value as YAML, as the command reads it; several as they are."""
    try:
        return yaml.safe_load(values[0]) if len(values) == 1 else values
    except yaml.YAMLError:
        return values[0]


def _appended(name: str, value: object) -> bool:
    return name.endswith("+") and isinstance(value, list)


def _flat(said: object, name: str = "") -> Iterator[tuple[str, Any]]:
    """Settings by dotted name."""
    if not isinstance(said, dict) or (name and not said):
        yield name, said
        return
    for key, value in said.items():
        yield from _flat(value, f"{name}.{key}" if name else str(key))


def _leaves(found: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """The same with lists of classes taken apart, so that a difference is short."""
    for name, value in found.items():
        if isinstance(value, list) and any(isinstance(each, dict) for each in value):
            yield from _leaves(dict(_flat({f"{name}.{at}": v for at, v in enumerate(value)})))
        else:
            yield name, value


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _in_words(name: str, was: str | None, told: str | None) -> str:
    if was is None:
        return f"without {name}, the study says {_short(told)}"
    now = "does not" if told is None else _short(told)
    return f"with {name} {_short(was)}, the study says {now}"


def _short(text: str | None) -> str:
    whole = str(text)
    return whole if len(whole) <= LONGEST else f"{whole[: LONGEST - 3]}..."
