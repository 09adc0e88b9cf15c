"""Members of an experiment file: `extends`, `matrix` and `overrides` become config layers.

A layer is the path of a config file, or settings by dotted name.
"""

import json
import os
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import Any

from consilium.config_files import is_reference, read_yaml, suggestion

Value = dict[str, Any] | list[Any] | str | float | bool | None  # of a YAML file
DEFAULT_BASE = "../base.yaml"
MAPPINGS = ("members", "matrix", "ensembles", "gates", "claims", "saliency")
NULLABLE = ("ensembles", "gates", "claims", "saliency")
NOT_INHERITED = ("gates", "claims")
MEMBERS_ONLY = ("model", "trainer.callbacks", "early_stopping")  # overrides without ensembles
MISSING = "`members` (or `matrix` and `member`, or `extends`) is required"


def read_experiment(
    file: Path, keys: Iterable[str], extended_by: tuple[Path, ...] = ()
) -> dict[str, Any]:
    """Content of an experiment file on top of the experiment that it extends.

    `members` maps each member to its layers (config files and settings): those of the extended
    experiment, of this file, and the overrides. `files` are this file and the extended ones. Paths
    are relative to the working directory. `extended_by` are files that must not be extended again.
    """
    if file in extended_by:
        raise ValueError(f"experiment {file}: `extends` is circular")
    content = _read(file, set(keys))
    parent = content.pop("extends", None)
    inherited = read_experiment(Path(parent), keys, (*extended_by, file)) if parent else {}
    members, axes = _members(file, content, inherited)
    overrides = as_list(content.get("overrides"))
    for name, layers in members.items():
        layers += as_list(fill_template(list(overrides), axes.get(name, {})))
    merged = {k: v for k, v in inherited.items() if k not in NOT_INHERITED} | content
    if merged.get("ensemble"):
        merged["ensemble"] = [*as_list(merged["ensemble"]), *map(_without_model, overrides)]
    files = (file, *inherited.get("files", ()))
    return {**merged, "members": members, "axes": axes, "files": files}


def as_list(value: Value) -> list[Value]:
    """A list of a value that may be a list already, or null."""
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _read(file: Path, keys: set[str]) -> dict[str, Any]:
    """The checked content of one experiment file, without what it extends."""
    if not file.is_file():
        raise ValueError(f"experiment {file}: no such file")
    content = read_yaml(file)
    if not isinstance(content, dict):
        kind = "the file is empty" if content is None else "not a mapping"
        raise ValueError(f"experiment {file}: {kind}; {MISSING}")
    _check_keys(file, content, keys)
    if "extends" not in content:
        content = {"base": DEFAULT_BASE, **content}
    return {key: resolve_paths(file.parent, value) for key, value in content.items()}


def _check_keys(file: Path, content: dict[str, Any], keys: set[str]) -> None:
    """Raises ValueError for unknown keys, missing members, and lists in place of mappings."""
    for key in content.keys() - keys:
        hint = suggestion(str(key), sorted(keys))
        raise ValueError(f"experiment {file}: unknown key {key!r}{hint}")
    has_members = content.keys() & {"extends", "members", "matrix"}
    if not has_members or ("matrix" in content and "member" not in content):
        raise ValueError(f"experiment {file}: keys {sorted(content)}; {MISSING}")
    for key in content.keys() & set(MAPPINGS):
        is_null = content[key] is None and key in NULLABLE
        if not isinstance(content[key], dict) and not is_null:
            raise ValueError(f"experiment {file}: {key}: {content[key]!r} is not a mapping")


def _members(
    file: Path, content: dict[str, Any], inherited: dict[str, Any]
) -> tuple[dict[str, list[Value]], dict[str, Any]]:
    """Layers by member, and matrix axes by member: the extended experiment's, then this file's."""
    parents: dict[str, list[Value]] = inherited.get("members", {})
    members = {name: list(layers) for name, layers in parents.items()}
    axes = expand_matrix(content["matrix"]) if "matrix" in content else {}
    own = {name: fill_template(content["member"], axes[name]) for name in axes}
    for name, layers in {**own, **content.get("members", {})}.items():
        if name not in parents and (parents or layers is None):
            why = "null removes a member of an extended experiment"
            if parents:
                why = f"the extended experiment has {', '.join(parents)}"
            raise ValueError(f"experiment {file}: member {name!r}: {why}")
        if layers is None:
            members.pop(name)
        else:
            members[str(name)] = [*members.get(name, []), *as_list(layers)]
    return members, inherited.get("axes", {}) | axes


def _without_model(override: Value) -> Value:
    """An override of the members without the settings that an ensemble does not have."""
    if not isinstance(override, dict):
        return override
    return {k: v for k, v in flatten_settings(override) if not k.startswith(MEMBERS_ONLY)}


def layer_arguments(where: str, layers: list[Value]) -> list[str]:
    """Command-line arguments of layers: `--config FILE` or `--trainer.max_epochs 3`.

    A layer that is neither the path of a file nor settings is refused; the error names `where`.
    """
    arguments: list[str] = []
    for layer in layers:
        settings = [("config", layer)]
        if isinstance(layer, dict):
            settings = flatten_settings(layer)
        elif not isinstance(layer, str) or not Path(layer).is_file():
            raise ValueError(f"{where}: {layer!r} is neither a config file nor settings")
        for name, value in settings:
            arguments += [f"--{name}", value if isinstance(value, str) else json.dumps(value)]
    return arguments


def flatten_settings(
    settings: Mapping[str, Any], prefix: str = "", split_classes: bool = False
) -> list[tuple[str, Any]]:
    """Nested settings by dotted name; a mapping with `class_path` is kept whole by default."""
    flat: list[tuple[str, Any]] = []
    for key, value in settings.items():
        name, is_class = f"{prefix}{key}", isinstance(value, dict) and "class_path" in value
        if not isinstance(value, dict) or not value or (is_class and not split_classes):
            flat.append((name, value))
        else:
            flat += flatten_settings(value, f"{name}.", split_classes)
    return flat


def expand_matrix(matrix: Mapping[str, Value]) -> dict[str, dict[str, Value]]:
    """Every combination of the axes as {axis: value}, by a name that joins those of values by `_`.

    An axis is a list of values, which are names as well, or a mapping of names to values.
    """
    named: list[list[tuple[str, Value]]] = []
    for axis, values in matrix.items():
        if not isinstance(values, (dict, list)):
            raise ValueError(f"matrix: {axis}: {values!r} is neither a list nor a mapping")
        items = values.items() if isinstance(values, dict) else zip(values, values, strict=True)
        named.append([(str(name), value) for name, value in items])
    return {
        "_".join(name for name, _ in cell): dict(zip(matrix, (v for _, v in cell), strict=True))
        for cell in product(*named)
    }


def fill_template(template: Value, axes: Mapping[str, Value]) -> Value:
    """The template with `{axis}` replaced; a text that is only `{axis}` becomes the value."""

    def fill(text: str) -> Value:
        """The text with every `{axis}` replaced."""
        for axis, value in axes.items():
            if text == f"{{{axis}}}":
                return value
            text = text.replace(f"{{{axis}}}", str(value))
        return text

    return _map_texts(template, fill)


def resolve_paths(folder: Path, value: Value) -> Value:
    """The value with every path of a YAML file made relative to the working directory."""

    def resolve(text: str) -> Value:
        """The path of a YAML file, normalized so that commands stay short; other texts as is."""
        return os.path.normpath(folder / text) if is_reference(text) else text

    return _map_texts(value, resolve)


def _map_texts(value: Value, function: Callable[[str], Value]) -> Value:
    """The value with the function applied to every text in it."""
    if isinstance(value, list):
        return [_map_texts(item, function) for item in value]
    if isinstance(value, dict):
        return {key: _map_texts(item, function) for key, item in value.items()}
    return function(value) if isinstance(value, str) else value
