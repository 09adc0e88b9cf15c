"""Connections of the server: those without a request are closed before they crowd out others."""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any, ClassVar
from weakref import WeakSet

from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

HEAD_SECONDS = 10.0  # within which the head of a request must arrive
MAX_WAITING = 384  # connections without a whole request
MAX_WAITING_PER_ADDRESS = 320  # a proxy has one address
# Connections that the loop accepts at once. Three times as many may be open until the oldest are
# closed: together fewer than the 1,024 files that a process may usually have open.
BACKLOG = 192
CHECK_SECONDS = 0.02  # after a new connection; a check for each of a thousand would take too long


class TimedProtocol(H11Protocol):
    """HTTP/1.1 with a time limit for the head of a request, which uvicorn lacks.

    If too many connections wait for the rest of a request, those that wait longest are closed, so
    that a new client is served at once.
    """

    servers_to_check: ClassVar[WeakSet[ServerState]] = WeakSet()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._start_waiting()
        if self.server_state not in self.servers_to_check:
            self.servers_to_check.add(self.server_state)
            self.loop.call_later(CHECK_SECONDS, self._close_oldest)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancels the time limit of the closed connection."""
        self.head_timer.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Handles arrived data, and cancels the time limit once the head of a request is whole."""
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self.head_timer.cancel()

    def on_response_complete(self) -> None:
        """Starts the time limit of the connection's next request."""
        self._start_waiting()
        super().on_response_complete()  # may begin a request that has arrived already

    @property
    def is_waiting(self) -> bool:
        """Whether the connection is open and no request has arrived as a whole."""
        if self.transport.is_closing():
            return False
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    @property
    def address(self) -> str | None:
        """Address of the client without its port; None for a Unix socket."""
        return self.client[0] if self.client else None

    def _start_waiting(self) -> None:
        """Starts the time limit for the head of the next request."""
        self.since = self.loop.time()
        self.head_timer = self.loop.call_later(HEAD_SECONDS, lambda: self.transport.abort())

    def _close_oldest(self) -> None:
        """Closes the oldest waiting connections above the limits, per address and in total."""
        self.servers_to_check.discard(self.server_state)
        waiting = [c for c in self.connections if isinstance(c, TimedProtocol) and c.is_waiting]
        waiting.sort(key=lambda connection: connection.since)
        by_address = defaultdict[str | None, list[TimedProtocol]](list)
        for connection in waiting:
            by_address[connection.address].append(connection)
        for group in by_address.values():
            _abort(group[: max(0, len(group) - MAX_WAITING_PER_ADDRESS)])
        remaining = [c for c in waiting if not c.transport.is_closing()]
        _abort(remaining[: max(0, len(remaining) - MAX_WAITING)])


def _abort(connections: Iterable[TimedProtocol]) -> None:
    """Closes connections at once."""
    for connection in connections:
        connection.transport.abort()
