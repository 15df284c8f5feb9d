"""Where the foreman of several verifiers shows what they have counted."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from socket import socket
from typing import Final, NamedTuple

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Stats
from attestkit.serve.http.request_checks import is_loopback
from attestkit.serve.server_log.access_log import AccessLog
from attestkit.serve.worker_pool.metrics_aggregation import Tally

__all__ = ["Shown", "showing"]

_SECONDS: Final = 1.0  # for a scrape to finish when the service stops, after its processes
_CONNECTIONS: Final = 64  # so that strangers leave descriptors to start processes with


class Shown(NamedTuple):
    """The socket of the metrics, and the bounds of its listener."""

    socket: socket
    handed_over: bool
    limits: Limits
    access_log: AccessLog | None = None


@asynccontextmanager
async def showing(
    shown: Shown | None, tally: Tally, on_end: Callable[[], None]
) -> AsyncIterator[None]:
    """Serve the metrics until the block ends; `on_end` is called where that is before it does.

    With nothing to show nothing is served.
    """
    if shown is None:
        yield
        return
    from attestkit.serve.http.server import Listener, beside  # uvicorn: late
    from attestkit.serve.verifier_service.metrics import NAME, VerifierMetricsApp

    own = Stats()

    def counted() -> Stats:
        total = tally.total()
        total.traffic[NAME] = own.of(NAME)
        return total

    limits = shown.limits
    listener = Listener(
        VerifierMetricsApp(counted, own.of(NAME), tally, only_local=is_loopback(shown.socket)),
        shown.socket,
        limits._replace(
            drain_seconds=min(limits.drain_seconds, _SECONDS),
            connections=min(limits.connections, _CONNECTIONS),
        ),
        NAME,
        own.of(NAME),
        shown.access_log,
        handed_over=shown.handed_over,
    )
    async with beside(listener, on_end):
        yield
    if shown.access_log is not None:
        shown.access_log.flush(patience=1.0)
