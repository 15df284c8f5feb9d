"""State and timers that the connections of one listener share."""

import asyncio
import select
from collections.abc import Callable
from typing import Any, Final, NamedTuple, Protocol, cast

import uvicorn

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.http.asgi import App, DirectApp
from attestkit.serve.server_log.access_log import AccessLog

LINGER_LIMIT: Final = 4 * 1024 * 1024
"""Bytes that are read and dropped from a client after an error response."""

LINGER_SECONDS: Final = 1.0
"""Time for which these bytes are read, so that the client gets the error before a reset."""


class Connection(Protocol):
    """Interface of a connection."""

    loop: asyncio.AbstractEventLoop

    def check(self, now: float) -> None:
        """Close the connection, or fail its request, if it exceeds a time limit.

        `now` is the time of the event loop in seconds.
        """

    def next_turn(self) -> None:
        """Send the responses that were queued during this event loop iteration."""


class ListenerState(NamedTuple):
    """State that the connections of one listener share."""

    name: str  # of the listener, as in log and metrics
    limits: Limits
    traffic: Traffic  # counters of connections and requests
    access_log: AccessLog | None  # None: requests are not logged
    timeouts: "TimeoutChecker"  # closes connections that exceed a time limit
    write_queue: "WriteQueue"  # responses to be written together

    @classmethod
    def of(
        cls, name: str, limits: Limits, traffic: Traffic, access_log: AccessLog | None
    ) -> "ListenerState":
        """Return the state of the listener `name`, with a new timeout checker and write queue.

        Without `access_log` (None), its requests are not logged.
        """
        return cls(name, limits, traffic, access_log, TimeoutChecker(limits), WriteQueue())


class ListenerConfig(uvicorn.Config):
    """uvicorn's configuration with the state that the connections of one listener share."""

    def __init__(
        self, app: App, shared: ListenerState, protocol: Callable[..., asyncio.Protocol]
    ) -> None:
        super().__init__(
            lambda: app,
            factory=True,  # else uvicorn calls the application to detect its interface
            http=cast("type[asyncio.Protocol]", protocol),
            ws="none",
            interface="asgi3",
            lifespan="off",
            log_config=None,
            log_level="error",
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
        self.shared = shared
        self.direct_app: DirectApp[Any] | None = app if isinstance(app, DirectApp) else None
        self.fixed_headers: list[tuple[bytes, bytes]] = [*getattr(app, "headers", ())]


class WriteQueue:
    """Connections with responses that are sent after all requests of a loop iteration.

    Waking a client costs more than most methods. Processing all requests before the first write
    lets the server work while clients wake up.
    """

    def __init__(self) -> None:
        self._waiting: list[Connection] = []

    def add(self, connection: Connection) -> None:
        """Send the connection's responses at the end of the loop iteration."""
        if not self._waiting:
            connection.loop.call_soon(self._flush)
        self._waiting.append(connection)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.next_turn()


class TimeoutChecker:
    """Timer that enforces the time limits of all connections of a listener."""

    def __init__(self, limits: Limits) -> None:
        shortest = min(
            limits.head_seconds,
            limits.body_seconds,
            limits.idle_seconds,
            limits.write_seconds,
            LINGER_SECONDS,
        )
        self._seconds = min(1.0, max(0.02, shortest / 4))
        self._timer: asyncio.TimerHandle | None = None

    def watch(self, connections: set[Any], loop: asyncio.AbstractEventLoop) -> None:
        """Check these connections periodically in the event loop, as long as there are any.

        Does nothing if the timer is running already. `connections` is the listener's live set; the
        timer ends when it is empty.
        """
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._check, connections, loop)

    def _check(self, connections: set[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for connection in list(connections):
            connection.check(now)
        if connections:
            self.watch(connections, loop)


def has_input(transport: asyncio.Transport) -> bool:
    """Return whether the kernel has received data that the event loop has not read yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))
