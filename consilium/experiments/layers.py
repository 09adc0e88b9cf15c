"""What a member of a study is made of: config files and settings in layers, later ones winning."""

import json
import os
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

Layer = Path | dict[str, Any]
Said = dict[str, Any] | list[Any] | str | float | bool | None
Axes = Mapping[str, Said]


def arguments(layers: tuple[Layer, ...]) -> list[str]:
    """The layers as a person would type them: files as --config, settings as flags."""
    words: list[str] = []
    for layer in layers:
        words += ["--config", str(layer)] if isinstance(layer, Path) else flags(layer)
    return words


def flags(settings: Mapping[str, Any]) -> list[str]:
    """`--trainer.max_epochs 3`, one flag a setting."""
    return [
        word
        for name, value in settings.items()
        for word in (f"--{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def layers(where: str, said: Said) -> tuple[Layer, ...]:
    """Layers of a path, of settings, or of a list of both; a file that is missing is refused."""
    each = said if isinstance(said, list) else [said]
    return tuple(_layer(where, one) for one in each)


def _layer(where: str, said: Said) -> Layer:
    if isinstance(said, dict):
        return dict(flat(said))
    if not isinstance(said, str) or not Path(said).is_file():
        raise ValueError(f"{where}: {said!r} is neither a config file nor settings")
    return Path(said)


def flat(settings: Mapping[str, Any], before: str = "") -> list[tuple[str, Any]]:
    """Nested settings by dotted names; a class with its arguments stays in one piece."""
    found: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name = f"{before}{key}"
        whole = not isinstance(value, dict) or not value or "class_path" in value
        found += [(name, value)] if whole else flat(value, f"{name}.")
    return found


def expanded(matrix: Mapping[str, Said]) -> dict[str, dict[str, Said]]:
    """Every combination of the axes by its name: the values' names joined by `_`.

    An axis is a list of names, which are the values as well, or a mapping of names to values.
    """
    axes = [
        [(axis, name, value) for name, value in _named(axis, values)]
        for axis, values in matrix.items()
    ]
    return {
        "_".join(name for _, name, _ in cell): {axis: value for axis, _, value in cell}
        for cell in product(*axes)
    }


def _named(axis: str, values: Said) -> list[tuple[str, Said]]:
    if isinstance(values, dict):
        return [(str(name), value) for name, value in values.items()]
    if not isinstance(values, list):
        raise ValueError(f"matrix: {axis}: {values!r} is neither a list nor a mapping")
    return [(str(value), value) for value in values]


def filled(said: Said, axes: Axes) -> Said:
    """The template with `{axis}` replaced by the value, whatever its type where it stands alone."""
    if isinstance(said, list):
        return [filled(one, axes) for one in said]
    if isinstance(said, dict):
        return {key: filled(value, axes) for key, value in said.items()}
    return _filled(said, axes) if isinstance(said, str) else said


def _filled(said: str, axes: Axes) -> Said:
    for axis, value in axes.items():
        if said == f"{{{axis}}}":
            return value
        said = said.replace(f"{{{axis}}}", str(value))
    return said


def beside(folder: Path, said: Said) -> Said:
    """Every path of a config file in it, told from `folder`."""
    if isinstance(said, list):
        return [beside(folder, one) for one in said]
    if isinstance(said, dict):
        return {key: beside(folder, value) for key, value in said.items()}
    if isinstance(said, str) and said.endswith((".yaml", ".yml")):
        return os.path.normpath(folder / said)  # commands stay readable
    return said
