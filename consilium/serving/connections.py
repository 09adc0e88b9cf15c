"""Connections of the server: those without a request are closed before they crowd out others."""

from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 10.0  # within which the head of a request must arrive
MAX_WAITING = 384  # connections without a whole request
MAX_WAITING_PER_ADDRESS = 320  # a proxy has one address
# Connections that the loop accepts at once. Three times as many may be open until the oldest are
# closed: together fewer than the 1,024 files that a process may usually have open.
BACKLOG = 192


class TimedProtocol(H11Protocol):
    """HTTP/1.1 with a time limit for the head of a request, which uvicorn lacks.

    If too many connections wait for the rest of a request, those that wait longest are closed, so
    that a new client is served at once.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._start_waiting()
        self.loop.call_later(0, self._close_oldest)  # once it is connected

    def connection_lost(self, exc: Exception | None) -> None:
        """Ends the time limit."""
        self.head_timer.cancel()
        super().connection_lost(exc)

    def handle_events(self) -> None:
        """Ends the time limit once a request has begun."""
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
        self.since = self.loop.time()
        self.head_timer = self.loop.call_later(HEAD_SECONDS, lambda: self.transport.abort())

    def _close_oldest(self) -> None:
        """Closes the oldest of the waiting connections if they are too many."""
        waiting = [c for c in self.connections if isinstance(c, TimedProtocol) and c.is_waiting]
        same_address = [c for c in waiting if c.address == self.address]
        for group, limit in ((same_address, MAX_WAITING_PER_ADDRESS), (waiting, MAX_WAITING)):
            if len(group) > limit:
                min(group, key=lambda connection: connection.since).transport.abort()
