"""What the connections of one listener share, and what is done for all of them at once."""

import asyncio
import select
from typing import Any, Final, NamedTuple, Protocol

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.server_log.access_log import AccessLog

__all__ = ["LINGER_LIMIT", "LINGER_SECONDS", "Shared", "has_input"]

LINGER_LIMIT: Final = 4 * 1024 * 1024
"""Bytes that a client which was refused may still send."""

LINGER_SECONDS: Final = 1.0
"""For which a client that was refused is listened to, so that it gets to read why."""


class Connection(Protocol):
    """What is needed of a connection."""

    loop: asyncio.AbstractEventLoop

    def check(self, now: float) -> None:
        """End it, or its request, if its state has lasted for too long."""

    def next_turn(self) -> None:
        """Let its answers of this turn go."""


class Shared(NamedTuple):
    """What the connections of one listener share."""

    name: str
    limits: Limits
    traffic: Traffic
    access_log: AccessLog | None
    sweep: "Sweep"
    outbox: "Outbox"

    @classmethod
    def of(
        cls, name: str, limits: Limits, traffic: Traffic, access_log: AccessLog | None
    ) -> "Shared":
        """Return it with a sweep and an outbox of its own."""
        return cls(name, limits, traffic, access_log, Sweep(limits), Outbox())


class Outbox:
    """Connections with answers that leave when all requests of the loop's turn have theirs.

    To wake a client costs more than most methods. So all are answered first: by the second of them
    the client is awake.
    """

    def __init__(self) -> None:
        self._waiting: list[Connection] = []

    def add(self, connection: Connection) -> None:
        """Have the connection's answers leave soon."""
        if not self._waiting:
            connection.loop.call_soon(self._flush)
        self._waiting.append(connection)

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        for connection in waiting:
            connection.next_turn()


class Sweep:
    """Ends what took too long on any connection of a listener."""

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
        """Look at these connections from time to time, as long as there are any."""
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look, connections, loop)

    def _look(self, connections: set[Any], loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for connection in list(connections):
            connection.check(now)
        if connections:
            self.watch(connections, loop)


def has_input(transport: asyncio.Transport) -> bool:
    """Tell whether the kernel has a request that the loop had no time for yet."""
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)
    return bool(poll.poll(0))
