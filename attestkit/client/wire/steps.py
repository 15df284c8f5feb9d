"""Steps by which a new connection is proven, independent of how its I/O is done.

A prover is a generator of steps. Its driver performs each one on the connection, and sends the
result, or throws the error, into the generator, which ends when the peer is proven.
"""

from collections.abc import Callable, Generator
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol

from attestkit.client.wire.observed_peer import ObservedPeer


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


class ConnectionProver(Protocol):
    """Prover of the connections to one server; thread-safe."""

    @property
    def host(self) -> str:
        """Name or address of the server, without brackets."""
        ...

    @property
    def port(self) -> int:
        """Port of the server."""
        ...

    @property
    def generation(self) -> int:
        """A number that changes when a proof has ended.

        Connections that were opened under another number carry no new request.
        """
        ...

    def check_open(self) -> None:
        """Check that a connection may be tried, before it is opened.

        Raises:
            UsageError: If the endpoint is closed.
            PeerRefusedError: If the server was refused several times in a row, lately.
        """
        ...

    def steps(self, peer: ObservedPeer) -> Steps:
        """Return the steps that prove a new connection, after its TLS handshake.

        The generator raises PeerRefusedError if the server is refused.
        """
        ...

    def accepts(self, spki_sha256: bytes) -> bool:
        """Return whether a key is proven now, for connections that cannot run steps."""
        ...
