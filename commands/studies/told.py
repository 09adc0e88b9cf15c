"""What the file of a study says, together with the study that it is like, its matrix filled in."""

from pathlib import Path
from typing import Any

import yaml

from commands.studies.layers import Said, beside, expanded, filled, flat

DEFAULT_BASE = "../base.yaml"
KEYS = {
    "like", "title", "base", "members", "matrix", "member", "overrides", "control",
    "council", "councils", "voter", "attribute", "attend", "level",
    "seeds", "folds", "gates", "claims", "maps",
}  # fmt: skip
NAMED = ("members", "matrix", "councils", "gates", "claims", "maps")  # mappings
EMPTY = ("councils", "gates", "claims", "maps")  # or nothing
OWN = ("gates", "claims")  # of one study alone
OF_MEMBERS = ("model", "trainer.callbacks", "early_stopping")  # means nothing to a council


def told(file: Path) -> dict[str, Any]:
    """What a study's file says, on top of what the study says that it is like.

    `members` then holds every member's layers in order: those of the other study, its own here,
    the overrides. Paths are told from where the command runs.
    """
    said = _read(file)
    before = told(Path(said["like"])) if "like" in said else {}
    members, axes = _members(file, said, before)
    overrides = listed(said.get("overrides"))
    for name, layers in members.items():
        layers += listed(filled(list(overrides), axes.get(name, {})))
    found = {k: v for k, v in before.items() if k not in OWN} | said
    if found.get("council"):
        found["council"] = [*listed(found["council"]), *map(_of_data, overrides)]
    return {**found, "members": members, "axes": axes}


def listed(said: Said) -> list[Said]:
    """A list of what may stand alone."""
    if said is None:
        return []
    return list(said) if isinstance(said, list) else [said]


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"study {file}: no such file")
    said = yaml.safe_load(file.read_text(encoding="utf-8"))
    keys = set(said) if isinstance(said, dict) else {type(said).__name__}
    if (
        keys - KEYS
        or not keys & {"like", "members", "matrix"}
        or ("matrix" in keys) > ("member" in keys)
    ):
        raise ValueError(
            f"study {file}: keys {sorted(keys)}; allowed {sorted(KEYS)}; "
            "members (or matrix and member, or like) needed"
        )
    _require_names(file, said)
    whole = said if "like" in said else {"base": DEFAULT_BASE, **said}
    found = beside(file.parent, whole)
    return found if isinstance(found, dict) else {}


def _require_names(file: Path, said: dict[str, Any]) -> None:
    """Refuses a list or a word where names are needed."""
    for key in said.keys() & set(NAMED):
        allowed = (dict, type(None)) if key in EMPTY else dict
        if not isinstance(said[key], allowed):
            raise ValueError(f"study {file}: {key}: {said[key]!r} is no mapping of names")


def _members(
    file: Path, said: dict[str, Any], before: dict[str, Any]
) -> tuple[dict[str, list[Said]], dict[str, Any]]:
    """Layers and axes of each member: those of the study before, then this file's."""
    known: dict[str, list[Said]] = before.get("members", {})
    found = {name: list(layers) for name, layers in known.items()}
    axes = expanded(said["matrix"]) if "matrix" in said else {}
    own = {name: filled(said["member"], axes[name]) for name in axes}
    for name, layers in {**own, **said.get("members", {})}.items():
        if name not in known and (known or layers is None):
            why = f"members are {', '.join(known)}" if known else "null is for members of `like`"
            raise ValueError(f"study {file}: member {name!r}; {why}")
        if layers is None:
            found.pop(name)
        else:
            found[str(name)] = [*found.get(name, []), *listed(layers)]
    return found, before.get("axes", {}) | axes


def _of_data(override: Said) -> Said:
    """An override of the members as far as it means something to a council."""
    if not isinstance(override, dict):
        return override
    return {name: v for name, v in flat(override) if not name.startswith(OF_MEMBERS)}
