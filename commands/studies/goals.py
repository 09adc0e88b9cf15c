"""What a study's figures are held to: least values, and what others state."""

from dataclasses import dataclass
from typing import Any

from commands.studies.layers import Said
from evaluation.names import NAMES, is_figure


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
    return found


def claims(where: str, said: Said, subjects: set[str], level: str) -> dict[str, Claim]:
    """What is stated of each figure."""
    found = _named(f"{where}: claims", said, subjects, level)
    return {name: _claim(f"{where}: claims: {name}", each) for name, each in found.items()}


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
        claim = Claim(given.get("claimed"), (low, high), str(given["why"]))
    except (TypeError, KeyError, ValueError):
        low, high = 1.0, 0.0
    if low > high:
        raise ValueError(f"{where}: {said!r}; a claim says claimed, believable (from, to) and why")
    return claim
