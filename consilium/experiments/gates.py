"""What a study's figures are held to: least values, and what others state."""

from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

from consilium.experiments.layers import Said
from evaluation.grouping import LEVELS
from evaluation.metrics.spec import NAMES, is_figure

ABOVE_ONE = ("nll", "brier")  # figures that may be; all else ends there


@dataclass(frozen=True)
class Claim:
    """A figure that the original states, and what is believable.

    Args:
        claimed: what was stated, None where nothing was.
        believable: from where to where an honest figure is expected.
        why: what that rests on.
    """

    claimed: float | None
    believable: tuple[float, float]
    why: str


def gates(where: str, said: Said, subjects: set[str], level: str) -> dict[str, float]:
    """The least value of each figure."""
    found = _named(f"{where}: gates", said, subjects, level)
    for name, least in found.items():
        if isinstance(least, bool) or not isinstance(least, int | float):
            raise ValueError(f"{where}: gates: {name}: {least!r} is not the least value allowed")
        _require_reached(f"{where}: gates", name, least)
    return found


def claims(where: str, said: Said, subjects: set[str], level: str) -> dict[str, Claim]:
    """What is stated of each figure."""
    found = _named(f"{where}: claims", said, subjects, level)
    made = {name: _claim(f"{where}: claims: {name}", each) for name, each in found.items()}
    for name, claim in made.items():
        _require_reached(f"{where}: claims", name, claim.claimed, *claim.believable)
    return made


def _named(where: str, said: Said, subjects: set[str], level: str) -> dict[str, Any]:
    """What is said of each figure, all of which the study will have."""
    found = dict(said) if isinstance(said, dict) else {}
    for name in found:
        who, _, metric = str(name).partition(".")
        if who not in subjects or not is_figure(metric, level):
            raise ValueError(
                f"{where}: {name}; allowed are WHO.METRIC with WHO of "
                f"{', '.join(sorted(subjects))} and METRIC of {', '.join(NAMES)}"
            )
    return found


def _claim(where: str, said: Said) -> Claim:
    given = said if isinstance(said, dict) else {}
    try:
        low, high = (float(end) for end in given["believable"])
        stated = given.get("claimed")
        claimed = None if stated is None else float(stated)
        claim = Claim(claimed, (low, high), str(given["why"]))
    except (TypeError, KeyError, ValueError):
        low, high = 1.0, 0.0
    if low > high:
        raise ValueError(f"{where}: {said!r}; a claim says claimed, believable (from, to) and why")
    return claim


def _require_reached(where: str, name: str, *values: float | None) -> None:
    """Refuses what no figure of the kind can reach, such as an accuracy of 97."""
    metric = name.partition(".")[2].split("/")
    kind = metric[1] if metric[0] in LEVELS and metric[1:] else metric[0]
    for value in values:
        if value is not None and value > 1 and not any(fnmatchcase(k, kind) for k in ABOVE_ONE):
            raise ValueError(f"{where}: {name}: {value}; figures of this kind go to 1")
