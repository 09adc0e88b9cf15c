"""What the file of a study says, together with the study that it is like, its matrix filled in."""

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from consilium.experiments.config_files import content
from consilium.experiments.layers import Said, beside, expanded, filled, flat

DEFAULT_BASE = "../base.yaml"
KEYS = {
    "like", "title", "base", "members", "matrix", "member", "overrides", "control",
    "ensemble", "ensembles", "voter", "attribute", "attend", "level",
    "seeds", "folds", "gates", "claims", "maps",
}  # fmt: skip
NEEDED = "members (or matrix and member, or like) needed"
NAMED = ("members", "matrix", "ensembles", "gates", "claims", "maps")  # mappings
EMPTY = ("ensembles", "gates", "claims", "maps")  # or nothing
OWN = ("gates", "claims")  # of one study alone
OF_MEMBERS = ("model", "trainer.callbacks", "early_stopping")  # means nothing to an ensemble


def told(file: Path, twins: tuple[Path, ...] = ()) -> dict[str, Any]:
    """What a study's file says, on top of what the study says that it is like.

    `members` then holds every member's layers in order: those of the other study, its own here,
    the overrides. Paths are told from where the command runs. `twins`: studies that are like it.
    """
    if file in twins:
        raise ValueError(f"study {file}: like: it is like itself")
    said = _read(file)
    before = told(Path(str(said["like"])), (*twins, file)) if "like" in said else {}
    members, axes = _members(file, said, before)
    overrides = listed(said.get("overrides"))
    for name, layers in members.items():
        layers += listed(filled(list(overrides), axes.get(name, {})))
    found = {k: v for k, v in before.items() if k not in OWN} | said
    if found.get("ensemble"):
        found["ensemble"] = [*listed(found["ensemble"]), *map(_of_data, overrides)]
    return {**found, "members": members, "axes": axes}


def listed(said: Said) -> list[Said]:
    """A list of what may stand alone."""
    if said is None:
        return []
    return list(said) if isinstance(said, list) else [said]


def _read(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"study {file}: no such file")
    said = content(file)
    if said is None or not isinstance(said, dict):
        what = "the file is empty" if said is None else f"a {type(said).__name__}, not a mapping"
        raise ValueError(f"study {file}: {what}; {NEEDED}")
    _require_keys(file, said)
    _require_names(file, said)
    whole = said if "like" in said else {"base": DEFAULT_BASE, **said}
    found = beside(file.parent, whole)
    return found if isinstance(found, dict) else {}


def _require_keys(file: Path, said: dict[str, Any]) -> None:
    """Refuses keys that mean nothing, and a study of no members."""
    for key in said.keys() - KEYS:
        nearest = get_close_matches(str(key), KEYS, 1)
        meant = f"; the nearest is {nearest[0]!r}" if nearest else ""
        raise ValueError(f"study {file}: unknown key {key!r}{meant}; allowed {sorted(KEYS)}")
    if not said.keys() & {"like", "members", "matrix"} or ("matrix" in said) > ("member" in said):
        raise ValueError(f"study {file}: keys {sorted(said)}; {NEEDED}")


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
    """An override of the members as far as it means something to an ensemble."""
    if not isinstance(override, dict):
        return override
    return {name: v for name, v in flat(override) if not name.startswith(OF_MEMBERS)}
