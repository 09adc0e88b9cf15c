"""A study: members, ensembles and what is asked of them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consilium.experiments import gates as goals
from consilium.experiments import values
from consilium.experiments.gates import Claim
from consilium.experiments.layers import Layer, Said, layers
from consilium.experiments.told import told
from evaluation.grouping import LEVELS, Level
from evaluation.metrics.spec import MAPS

ENSEMBLE = "ensemble"
MEMBERS = "members"
CONTROL: Layer = {"trainer.callbacks.init_args.density": 1.0}  # of the last callback: the sparse


@dataclass(frozen=True)
class MapsAsked:
    """Heat maps of test pictures that are measured.

    Args:
        methods: names of `evaluation.names.MAPS`.
        limit: so many pictures, evenly spread over the split; None for all.
    """

    methods: list[str]
    limit: int | None = None


@dataclass(frozen=True)
class ExperimentConfig:
    """Members by name, their ensembles, the gates and the claims.

    Args:
        name: the file's stem; names the output folder.
        title: what stands above the report.
        base: config that every member starts from.
        members: config files and settings of each member; later ones win.
        ensemble: the same of the ensembles.
        ensembles: the members of each ensemble; an only one is called ensemble.
        controls: members trained with all weights, and those that each is the control of.
        voter: the voter that the ensembles go by; all that can be fitted on val are judged.
        attribute: attribute with weights of its own, such as body_part.
        attend: its values that an attention layer weighs.
        level: what is judged beside images: study or patient; image for nothing else.
        seeds: each member is trained once with each; none leaves the members' own.
        folds: parts of the patients, each of which is tested once; 0 keeps the data's splits.
        gates: least values by `ensemble.METRIC`, `members.METRIC` or `NAME.METRIC`.
        claims: what others state of figures, named in the same way.
        maps: heat maps that are measured; none are where it is left out.
    """

    name: str
    title: str
    base: Path
    members: dict[str, tuple[Layer, ...]]
    ensemble: tuple[Layer, ...] = ()
    ensembles: dict[str, list[str]] = field(default_factory=dict)
    controls: dict[str, list[str]] = field(default_factory=dict)
    voter: str = "soft"
    attribute: str = ""
    attend: list[str] = field(default_factory=list)
    level: Level = "image"
    seeds: list[int] = field(default_factory=list)
    folds: int = 0
    gates: dict[str, float] = field(default_factory=dict)
    claims: dict[str, Claim] = field(default_factory=dict)
    maps: MapsAsked | None = None


def read_study(path: str | Path) -> ExperimentConfig:
    """The study of a YAML file; unknown keys, names and missing files are refused."""
    file = Path(path)
    said, where = told(file), f"study {file}"
    members = {name: layers(f"{where}: {name}", each) for name, each in said["members"].items()}
    controls = _controls(f"{where}: control", said.get("control"), members)
    members |= {name: (*members[of[0]], CONTROL) for name, of in controls.items()}
    values.require_names(where, "member", members)
    ensembles = _ensembles(where, said, members)
    level = _level(where, said.get("level", "image"))
    attribute = values.text(where, "attribute", said.get("attribute"))
    attend = values.attend(where, said.get("attend"))
    has = {"attribute": bool(attribute), "attend": bool(attend)}
    subjects = {MEMBERS, *members, *ensembles} | ({ENSEMBLE} if ensembles else set())
    return ExperimentConfig(
        name=file.stem,
        title=values.text(where, "title", said.get("title")) or file.stem,
        base=_base(where, said["base"]),
        members=members,
        ensemble=layers(f"{where}: ensemble", said["ensemble"]) if ensembles else (),
        ensembles=ensembles,
        controls=controls,
        voter=values.voter(where, said.get("voter"), has),
        attribute=attribute,
        attend=attend,
        level=level,
        seeds=values.seeds(where, said.get("seeds")),
        folds=values.folds(where, said.get("folds")),
        gates=goals.gates(where, said.get("gates"), subjects, level),
        claims=goals.claims(where, said.get("claims"), subjects, level),
        maps=_maps(where, said.get("maps")),
    )


def _base(where: str, said: Said) -> Path:
    if not isinstance(said, str) or not Path(said).is_file():
        raise ValueError(f"{where}: base {said!r} is not a file")
    return Path(said)


def _controls(where: str, said: Said, members: Mapping[str, object]) -> dict[str, list[str]]:
    """The members of each control; `true` gives each member one of its own."""
    if not said:
        return {}
    if not isinstance(said, dict) and said is not True:
        raise ValueError(f"{where}: {said!r}; true, or names with the members of each")
    given = said if isinstance(said, dict) else {f"{name}_control": [name] for name in members}
    for name in given.keys() & members.keys():
        raise ValueError(f"{where}: {name!r} is a member already")
    return _of_members(where, given, members)


def _ensembles(where: str, said: dict[str, Any], members: Iterable[str]) -> dict[str, list[str]]:
    """The members of each ensemble; `all` means all of them."""
    given = said.get("ensembles")
    if given and not said.get("ensemble"):
        raise ValueError(f"{where}: ensembles need ensemble, the config of all of them")
    if not said.get("ensemble"):
        return {}
    if not given:
        return {ENSEMBLE: list(members)}
    values.require_names(where, "ensemble", map(str, given))
    whole = {f"{ENSEMBLE}-{n}": list(members) if of == "all" else of for n, of in given.items()}
    return _of_members(f"{where}: ensembles", whole, members)


def _of_members(
    where: str, given: Mapping[str, Any], members: Iterable[str]
) -> dict[str, list[str]]:
    """The lists with members that are there; names that no study knows were refused before."""
    known = list(members)
    for name, of in given.items():
        each = of if isinstance(of, list) else []
        if not each or any(one not in known for one in each) or len(set(each)) < len(each):
            raise ValueError(f"{where}: {name}: {of!r}; members, each once, of {', '.join(known)}")
    return {name: list(of) for name, of in given.items()}


def _level(where: str, said: str) -> Level:
    found = [level for level in LEVELS if level == said]
    if not found:
        raise ValueError(f"{where}: level {said!r}; allowed are {', '.join(LEVELS)}")
    return found[0]


def _maps(where: str, said: dict[str, Any] | None) -> MapsAsked | None:
    if not said:
        return None
    methods: list[str] = said.get("methods", [])
    limit = said.get("limit")
    known = isinstance(methods, list) and methods and all(name in MAPS for name in methods)
    counted = limit is None or (type(limit) is int and limit > 0)
    if not known or not counted or said.keys() - {"methods", "limit"}:
        raise ValueError(
            f"{where}: maps: {said!r}; needed is methods, a list of {', '.join(MAPS)}; limit "
            "may be a whole number from 1"
        )
    return MapsAsked(methods, limit)
