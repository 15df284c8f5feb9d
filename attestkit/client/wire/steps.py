"""Steps by which a new connection is proven, independent of how its I/O is done.

A prover is a generator of steps. Its driver performs each one on the connection, and sends the
result, or throws the error, into the generator, which ends when the peer is proven.
"""

from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, NamedTuple


class Send(NamedTuple):
    """Send bytes over TLS; no result."""

    data: bytes


class Receive(NamedTuple):
    """Receive 1 to `limit` bytes; the result is empty at the end of the stream."""

    limit: int
    seconds: float  # after which the driver throws TimeoutError


class Run(NamedTuple):
    """Call a function that may take long or do I/O; an event loop calls it in a thread."""

    work: Callable[[], Any]


class Wait(NamedTuple):
    """Wait for a future, which another connection completes."""

    future: Future[Any]
    seconds: float  # after which the driver throws TimeoutError


Step = Send | Receive | Run | Wait

Steps = Generator[Step, Any, bool]
"""The result says whether the connection can carry requests: False if the server closes it."""
