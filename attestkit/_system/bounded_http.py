"""One HTTP/1.1 exchange with an untrusted server, with one deadline and limits of size.

The limits of `http.client`, which is slow to import, are per line and per read.
"""

import io
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, NamedTuple, cast

if TYPE_CHECKING:
    import socket
    from email.message import Message
    from http.client import HTTPConnection, HTTPResponse

    from _typeshed import WriteableBuffer

_PIECE: Final = 1 << 16  # bytes per read
_BUFFER: Final = 8192  # bytes that are read ahead
_ADDRESSES: Final = 8  # of a host that are tried


class TooLargeError(Exception):
    """The response exceeds the limit that is the text of this error."""


class RawResponse(NamedTuple):
    """A response of any status."""

    status: int
    headers: "Message"
    body: bytes


class ResponseLimits(NamedTuple):
    """Limits of a response in bytes, and the time that is left for it."""

    head: int  # before the body, including interim (1xx) responses; also of the chunk framing
    body: int
    time_left: Callable[[], float]  # seconds


def exchange(
    connection: "HTTPConnection",
    sock: "socket.socket",
    limits: ResponseLimits,
    request: tuple[str, str, bytes | None, Mapping[str, str]],
) -> RawResponse:
    """Send a request on `sock`, which is connected and is not closed, and read the response.

    Args:
        connection: Formats the request, and parses the response.
        sock: The socket.
        limits: Limits of the response.
        request: Method, target, body and headers.

    Raises:
        TooLargeError: If the response exceeds a limit.
        HTTPException: If the response is malformed or truncated.
        OSError: If the connection fails; TimeoutError if the time is up.
    """
    bounded = _BoundedSocket(sock, limits)
    connection.sock = cast("socket.socket", bounded)  # has the methods that http.client uses
    connection.request(*request)
    with connection.getresponse() as response:
        bounded.allow_body()
        return RawResponse(response.status, response.headers, _read_body(response, limits.body))


def connect_tcp(
    host: str, port: int, seconds: float, time_left: Callable[[], float]
) -> "socket.socket":
    """Return a socket that is connected to the first address of a host that accepts.

    Args:
        host: Name or address; the time of its resolution is not limited.
        port: Port.
        seconds: Limit for each address, of which eight are tried.
        time_left: Returns the seconds that are left for all of them.

    Raises:
        OSError: If no address accepts; TimeoutError if the time is up.
    """
    import socket

    failed: OSError = TimeoutError("timed out")
    for family, kind, protocol, _, address in socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM
    )[:_ADDRESSES]:
        if (limit := min(seconds, time_left())) <= 0:
            break
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(limit)
            sock.connect(address)
        except OSError as error:
            sock.close()
            failed = error
        else:
            return sock
    raise failed


def encode_json_post(host: str, target: str, body: bytes) -> bytes:
    """Return a POST request of HTTP/1.1 with a JSON body, for `exchange_at_once`.

    Args:
        host: Value of the header Host, ASCII without control characters.
        target: Request target, ASCII without spaces and control characters.
        body: JSON text.
    """
    head = (
        f"POST {target} HTTP/1.1\r\n"
        f"Host: {host}\r\n"
        "Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n"
        "Accept: application/json\r\n"
        "Accept-Encoding: identity\r\n"
        "User-Agent: attestkit\r\n"
        "Connection: close\r\n\r\n"
    )
    return head.encode("ascii") + body


def exchange_at_once(sock: "socket.socket", limits: ResponseLimits, request: bytes) -> RawResponse:
    """Send a whole POST request in one write, and read the response, also if sending failed.

    A server may answer and close before it has read the request; the answer then explains more than
    the failed write.

    Args:
        sock: Connected socket, which is not closed.
        limits: Limits of the response.
        request: Head and body.

    Raises:
        TooLargeError, HTTPException, OSError: As `exchange`. If neither sending succeeded nor an
            answer came, the error of sending.
    """
    from http.client import HTTPException, HTTPResponse

    bounded = _BoundedSocket(sock, limits)
    failed: OSError | None = None
    try:
        bounded.sendall(request)
    except TimeoutError:
        raise
    except OSError as error:
        failed = error
    try:
        response = HTTPResponse(cast("socket.socket", bounded), method="POST")
        with response:
            response.begin()
            bounded.allow_body()
            return RawResponse(response.status, response.headers, _read_body(response, limits.body))
    except (OSError, HTTPException) as error:
        if failed is None:
            raise
        raise failed from error


def _read_body(response: "HTTPResponse", limit: int) -> bytes:
    """Read a body in pieces, so that memory is allocated only for received bytes."""
    from http.client import IncompleteRead

    body, declared = bytearray(), response.length or 0
    while max(declared, len(body)) <= limit:
        if not (piece := response.read(_PIECE)):
            break
        body += piece
    else:
        raise TooLargeError(_size(limit))
    if response.length:
        raise IncompleteRead(b"", response.length)
    return bytes(body)


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"


class _BoundedSocket(io.RawIOBase):
    """A connected socket for http.client with a deadline and a limit of received bytes."""

    def __init__(self, sock: "socket.socket", limits: ResponseLimits) -> None:
        self._sock = sock
        self._limits = limits
        self._room = limits.head
        self._limit = f"{_size(limits.head)} before the body"

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self._set_timeout()
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a buffered reader of the socket."""
        assert mode == "rb"
        # The buffer is small, because bytes read ahead count against the limit of the head.
        return io.BufferedReader(self, buffer_size=_BUFFER)

    def allow_body(self) -> None:
        """Raise the limit from that of a head to that of a response."""
        self._room += self._limits.body
        self._limit = _size(self._limits.body)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Receive into `buffer`; raise if the limit is exceeded."""
        self._set_timeout()
        size = self._sock.recv_into(buffer)
        self._room -= size
        if self._room < 0:
            raise TooLargeError(self._limit)
        return size

    def close(self) -> None:
        """Do nothing: http.client closes the socket before it reads the body."""

    def _set_timeout(self) -> None:
        if (seconds := self._limits.time_left()) <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(seconds)
