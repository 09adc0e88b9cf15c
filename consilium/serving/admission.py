"""The waiting room: how many pictures, and how many bytes of them, may be inside at once."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Full(Exception):
    """There is no room or no time now; `retry` says in how many seconds there may be."""

    def __init__(self, retry: int, why: str = "all places are taken") -> None:
        self.retry = retry
        super().__init__(f"{why}; try again in {retry} s")


class Room:
    """Places for pictures and for the bytes of requests whose pictures are not yet decoded.

    Used from one thread, that of the event loop.

    Args:
        places: pictures that may wait or be looked at.
        most_bytes: bytes of requests that may be held.
        pace: gives the seconds that a picture takes.
    """

    def __init__(self, places: int, most_bytes: int, pace: Callable[[], float]) -> None:
        self.places, self.most_bytes, self.pace = places, most_bytes, pace
        self.taken = self.held = 0

    def fits(self, pictures: int, size: int) -> bool:
        """Whether so many more pictures and bytes would have room."""
        enough = self.taken + pictures <= self.places
        return enough and self.held + size <= self.most_bytes

    @contextmanager
    def admitted(self, size: int) -> Iterator["Place"]:
        """One place and `size` bytes, or Full; all that was taken is given back at the end."""
        place = Place(self)
        place.take(1, size)
        try:
            yield place
        finally:
            self.taken, self.held = self.taken - place.pictures, self.held - place.bytes

    @property
    def retry(self) -> int:
        """Seconds until what is inside should be answered, from 1 to 60."""
        return min(60, max(1, math.ceil(self.pace() * self.taken)))


class Place:
    """What one request holds of a room."""

    def __init__(self, room: Room) -> None:
        self.room, self.pictures, self.bytes = room, 0, 0

    def take(self, pictures: int, size: int = 0) -> None:
        """More places and bytes, all of them or, with Full, none."""
        if not self.room.fits(pictures, size):
            raise Full(self.room.retry)
        self.room.taken, self.room.held = self.room.taken + pictures, self.room.held + size
        self.pictures, self.bytes = self.pictures + pictures, self.bytes + size
