"""Connection pools that are replaced when a proof, an accepted verification of the server, ends.

A period is the time from one end of a proof to the next, in one process. A request uses connections
of the current period only. The pool of an earlier period is closed once its requests have ended,
streams included.
"""

import os
import re
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Generic, TypeVar

from attestkit._system.fork_safety import call_now_and_after_fork
from attestkit.client.wire.steps import ConnectionVerifier, ReconnectError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Method, target and version of HTTP/1.1 (RFC 9112, section 3).
_REQUEST_LINE: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [^ \r\n]+ HTTP/1\.[01]\r\n")


def period(server_verifier: ConnectionVerifier) -> tuple[int, int]:
    """Return the identifier of the current period: generation of the verifier, and process id.

    A forked process has copies of the connections, which only the parent process may use.
    """
    return server_verifier.generation, os.getpid()


class ProofPeriod:
    """The period in which one connection was opened.

    Attributes:
        in_request: Whether the next write continues a request.
    """

    __slots__ = ("_opened", "_server_verifier", "in_request")

    def __init__(self, server_verifier: ConnectionVerifier, opened: tuple[int, int]) -> None:
        """Store the period `opened`: the result of `period` before the server was verified."""
        self._server_verifier, self._opened = server_verifier, opened
        self.in_request: bool = False

    def before_write(self, data: "ReadableBuffer") -> None:
        """Check that a request which begins with these bytes may be sent.

        Raises:
            ReconnectError: If a request of HTTP/1.1 begins, and a proof has ended since the
                connection was opened; nothing was sent.
        """
        if self.in_request:
            return
        if period(self._server_verifier) != self._opened and _REQUEST_LINE.match(data):
            message = "connection: its proof has ended; connect again"
            raise ReconnectError(message)
        self.in_request = True

    def after_read(self) -> None:
        """Note that the peer has answered, so that the next write may begin a request."""
        self.in_request = False


P = TypeVar("P")


class PoolLease(Generic[P]):
    """A pool, and the number of requests that use it.

    Attributes:
        pool: The pool.
        opened: Result of `period` when it was made; it is replaced when that has changed.
        users: Number of requests that use it.
        retired: Whether another pool has replaced it; it is closed when `users` is 0.
    """

    __slots__ = ("opened", "pool", "retired", "users")

    def __init__(self, pool: P, opened: tuple[int, int]) -> None:
        self.pool: P = pool
        self.opened: tuple[int, int] = opened
        self.users: int = 0
        self.retired: bool = False


class PoolSet(Generic[P]):
    """The pools of one transport; thread-safe. Methods return pools that the caller closes."""

    def __init__(self, server_verifier: ConnectionVerifier, make: Callable[[], P]) -> None:
        self._server_verifier, self._make = server_verifier, make
        self._current: PoolLease[P] | None = None
        self._retired: list[PoolLease[P]] = []
        self._of_parent: list[PoolLease[P]] = []
        call_now_and_after_fork(self._forget_parent)

    def acquire(self) -> tuple[PoolLease[P], list[P]]:
        """Return the lease of a pool for a new request, and the pools to close.

        The caller passes the lease to `release` when the request has ended.
        """
        now = period(self._server_verifier)
        with self._lock:
            idle = []
            if self._current is not None and self._current.opened != now:
                idle = self._retire(self._current)
            if self._current is None:
                self._current = PoolLease(self._make(), now)
            self._current.users += 1
            return self._current, idle

    def release(self, lease: PoolLease[P], *, retire: bool = False) -> list[P]:
        """Note the end of a request; return the pools to close.

        Args:
            lease: The lease that `acquire` returned for the request.
            retire: Whether `acquire` must not return this pool again.
        """
        with self._lock:
            lease.users -= 1
            if retire and lease is self._current:
                return self._retire(lease)
            if lease.retired and lease.users == 0 and lease in self._retired:
                self._retired.remove(lease)
                return [lease.pool]
            return []

    def drain(self) -> list[P]:
        """Return all pools, to be closed, and forget them."""
        with self._lock:
            leases, self._retired = self._retired, []
            if self._current is not None:
                self._current.retired = True
                leases.append(self._current)
                self._current = None
            return [lease.pool for lease in leases]

    def _retire(self, lease: PoolLease[P]) -> list[P]:
        self._current, lease.retired = None, True
        if lease.users == 0:
            return [lease.pool]
        self._retired.append(lease)
        return []

    def _forget_parent(self) -> None:
        """Create the lock; after a fork, drop the parent's pools, whose locks may be held."""
        self._lock = threading.Lock()
        # They are kept alive: their sockets are the parent's, and none of them is closed here.
        self._of_parent += self._retired
        if self._current is not None:
            self._of_parent.append(self._current)
        self._current, self._retired = None, []
