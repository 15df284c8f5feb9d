"""The period in which a connection may begin requests: until a proof ends, and in one process.

Requests under way when it ends are finished. Clients of HTTP/1.1 send the head of a request in one
piece, and only after they have read the previous answer; so what begins a request is seen in what
is written, also where the client has a pool of its own.
"""

import os
import re
from typing import TYPE_CHECKING, Final

from attestkit.client.wire.drivers import ReconnectError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from attestkit.client.wire.steps import ConnectionProver

# Method, target and version of HTTP/1.1 (RFC 9112, section 3).
_REQUEST_LINE: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+ [^ \r\n]+ HTTP/1\.[01]\r\n")


def period(prover: "ConnectionProver") -> tuple[int, int]:
    """Return what identifies the current period: the prover's generation, and the process.

    A forked process has copies of the connections, which it must not use beside their owner.
    """
    return prover.generation, os.getpid()


class ProofPeriod:
    """The period in which one connection was opened.

    Attributes:
        in_request: Whether what is written next continues a request.
    """

    __slots__ = ("_opened", "_prover", "in_request")

    def __init__(self, prover: "ConnectionProver", opened: tuple[int, int]) -> None:
        """Take the period in which the connection was opened, before its proof began."""
        self._prover, self._opened = prover, opened
        self.in_request: bool = False

    def before_write(self, data: "ReadableBuffer") -> None:
        """Check that a request which begins with these bytes may be sent.

        Raises:
            ReconnectError: If it begins a request, and the period has ended.
        """
        if self.in_request:
            return
        if period(self._prover) != self._opened and _REQUEST_LINE.match(data):
            message = "connection: its proof has ended; connect again"
            raise ReconnectError(message)
        self.in_request = True

    def after_read(self) -> None:
        """Note that the peer has answered, so that the next write may begin a request."""
        self.in_request = False
