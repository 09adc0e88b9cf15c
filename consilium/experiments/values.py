"""What a study says plainly: numbers, names, its voter; each is held to what is allowed."""

from collections.abc import Iterable

from consilium.experiments.layers import Said
from evaluation.voters.store import VOTERS

NEEDS = {"per_part": "attribute", "part_attention": "attend"}
GIVEN = "weighted"  # its weights are an option of consilium ensemble, which no study has
OWN = ("ensemble", "voters", "members", "maps")  # runs and groups that a study names itself


def seeds(where: str, said: Said) -> list[int]:
    """Seeds, each once; none where nothing is said."""
    given = [] if said is None else said
    found = [n for n in given if type(n) is int and n >= 0] if isinstance(given, list) else []
    if found != given or len(set(found)) < len(found):
        raise ValueError(f"{where}: seeds: {said!r}; a list of whole numbers from 0, each once")
    return found


def folds(where: str, said: Said) -> int:
    """Parts of the patients, 0 for the data's own splits."""
    if said is None:
        return 0
    if type(said) is not int or said in (1, 2) or said < 0:
        why = "a whole number, at least 3 (train, val, test), or 0 for none"
        raise ValueError(f"{where}: folds: {said!r}; {why}")
    return said


def attend(where: str, said: Said) -> list[str]:
    """Values of the attribute; none where nothing is said."""
    given = [] if said is None else said
    if not isinstance(given, list) or not all(isinstance(v, str | int) for v in given):
        raise ValueError(f"{where}: attend: {said!r}; a list of values of the attribute")
    return [str(value) for value in given]


def text(where: str, key: str, said: Said) -> str:
    """A word or a line, "" where nothing is said."""
    if said is not None and not isinstance(said, str | int | float):
        raise ValueError(f"{where}: {key}: {said!r}; a text")
    return "" if said is None else str(said)


def voter(where: str, said: Said, has: dict[str, bool]) -> str:
    """One of the voters that are fitted on val; what it needs must be said as well."""
    name, known = text(where, "voter", said) or "soft", [name for name in VOTERS if name != GIVEN]
    if name not in known:
        raise ValueError(f"{where}: voter: {said!r}; allowed are {', '.join(known)}")
    need = NEEDS.get(name)
    if need and not has[need]:
        raise ValueError(f"{where}: voter: {name}; it needs {need}")
    if has["attend"] and not has["attribute"]:
        raise ValueError(f"{where}: attend names values of an attribute: it needs attribute")
    return name


def require_names(where: str, what: str, names: Iterable[str]) -> None:
    """Refuses no names at all, and names that are no folder's or that the study uses itself."""
    found = list(names)
    if not found:
        raise ValueError(f"{where}: {what}s: there are none; a study needs at least one")
    for name in found:
        if not name or "/" in name or name.startswith("."):
            raise ValueError(f"{where}: {what}: {name!r}; a name of a folder, without /")
        if name in OWN or name.startswith(tuple(f"{own}-" for own in OWN)):
            whose = f"the study's own are {', '.join(OWN)}, and such with a dash behind"
            raise ValueError(f"{where}: {what}: {name!r} is a name that the study uses; {whose}")
