"""Two pieces of work measured one after the other, each first every other time."""

from collections.abc import Callable
from typing import TypeVar

Work = TypeVar("Work")
Measured = TypeVar("Measured")


def in_turns(
    one: Work, other: Work, measure: Callable[[Work], Measured], pairs: int
) -> list[tuple[Measured, Measured]]:
    """What `measure` says of both, pair after pair; what drifts falls on both alike."""
    found = []
    for i in range(pairs):
        if i % 2 == 0:
            found.append((measure(one), measure(other)))
        else:
            late = measure(other)
            found.append((measure(one), late))
    return found
