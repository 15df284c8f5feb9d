"""One HTTP/1.1 exchange with an untrusted server, with one deadline and limits of size.

Redirects are not followed, and neither the proxies nor the keylog file of the environment are
used. `http.client`, which is slow to import, parses the response; its own limits are per line and
per read.
"""

import contextlib
import errno
import io
import re
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeAlias, cast

from attestkit._sanitize import one_line
from attestkit._system.bounded_calls import BoundedCalls
from attestkit.errors import AttestKitError

if TYPE_CHECKING:
    import socket
    import ssl
    from email.message import Message
    from http.client import HTTPResponse

    from _typeshed import WriteableBuffer

_PIECE: Final = 1 << 16  # bytes per read
_BUFFER: Final = 8192  # bytes that are read ahead
_ADDRESSES: Final = 8  # of a host that are tried
_LOOK_UPS: Final = 32  # of names, which exceed their time and go on
_SHORTEST: Final = 0.001  # seconds; 0 would make a socket non-blocking
_LONGEST_TEXT: Final = 100  # characters of OpenSSL's text
_LENGTH: Final = re.compile(r"[0-9]{1,19}")  # of a body, stated once
_MAX_PROXY_HEAD: Final = 1 << 16  # bytes of a proxy's answer
_STATUS: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[ \r\n]")
_HEADERS: Final = {
    "Accept": "*/*",
    "Accept-Encoding": "identity",
    "Connection": "close",
    "User-Agent": "attestkit",
}
JSON_POST: Final = {"Content-Type": "application/json", "Accept": "application/json"}
"""Headers of a request with a JSON body."""

_look_ups: Final = BoundedCalls(_LOOK_UPS)

ExchangeFailure: TypeAlias = Literal[
    "too_large", "timed_out", "tls", "connection", "truncated", "malformed"
]
"""Why an exchange failed: `connection` is any other error of the operating system."""

TimeLeft: TypeAlias = Callable[[], float]
"""Function that returns the seconds that are left."""


class ExchangeError(Exception):
    """An exchange failed. The text contains no part of the response; callers add the URL before it.

    `kind` is the kind of failure, one of `ExchangeFailure`. Its cause is the OSError, if there was
    one.
    """

    def __init__(self, kind: ExchangeFailure, text: str) -> None:
        super().__init__(text)
        self.kind: ExchangeFailure = kind


class Response(NamedTuple):
    """HTTP response: status code, header fields by name (in any case), and body."""

    status: int
    headers: Mapping[str, str]  # names in any case; repeated fields are joined
    body: bytes


class Request(NamedTuple):
    """A request; the headers Host, Accept, Accept-Encoding, Connection and User-Agent are added.

    `host` is the value of the header Host, `target` the request target; `body` None sends none.
    """

    method: str
    host: str  # value of the header Host
    target: str
    headers: Mapping[str, str] = {}
    body: bytes | None = None

    def encode(self) -> bytes:
        """Return the bytes of the request.

        Raises:
            ValueError: If a part has control or non-ASCII characters, or the target has spaces.
        """
        fields = {"Host": self.host, **_HEADERS, **self.headers}
        if self.body is not None:
            fields["Content-Length"] = str(len(self.body))
        lines = [f"{self.method} {self.target} HTTP/1.1"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        if " " in self.target or not all(line.isascii() and line.isprintable() for line in lines):
            raise ValueError("request: control or non-ASCII character, or space in the target")
        return "\r\n".join([*lines, "\r\n"]).encode("ascii") + (self.body or b"")


class ResponseLimits(NamedTuple):
    """Limits of a response (`head` and `body` in bytes) and of a whole exchange (`seconds`)."""

    head: int  # before the body, including interim (1xx) responses; also of the chunk framing
    body: int
    seconds: float
    clock: Callable[[], float] = time.monotonic


def exchange(
    connect: "Callable[[TimeLeft], socket.socket]", request: Request, limits: ResponseLimits
) -> Response:
    """Connect, send a request in one write, read the response of any status, and close.

    A server may answer and close before it has read the request; the answer then explains more than
    the failed write, and is returned.

    Args:
        connect: Returns a connected socket; its argument returns the seconds that are left.
        request: The request.
        limits: Limits of the response and of time.

    Raises:
        ExchangeError: If the request is invalid, the connection or the response takes too long or
            fails, or the response exceeds a limit, is malformed or truncated, or has an encoding,
            which was not requested.
        AttestKitError: From `connect`.
    """
    from http.client import HTTPException

    deadline = limits.clock() + limits.seconds

    def time_left() -> float:
        return deadline - limits.clock()

    try:
        data = request.encode()
        with contextlib.closing(connect(time_left)) as sock:
            return _exchange(_BoundedSocket(sock, limits, time_left), request.method, data)
    except AttestKitError:  # some are ValueErrors
        raise
    except (_TooLargeError, OSError, HTTPException, ValueError) as error:
        failed = _describe(error, limits.seconds)
    # Outside of the handler: some of the errors contain the response.
    raise failed


def host_header(host: str, port: int) -> str:
    """Return the value of the header Host, always with the port; an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def connect_tcp(host: str, port: int, seconds: float, time_left: TimeLeft) -> "socket.socket":
    """Return a socket that is connected to the first address of a host that accepts.

    Args:
        host: Name or address.
        port: Port.
        seconds: Limit for each address, of which eight are tried.
        time_left: Returns the seconds that are left for name resolution and all addresses.

    Raises:
        OSError: If the name cannot be resolved, or no address accepts; TimeoutError if the time is
            up.
    """
    import socket

    failed: OSError = TimeoutError("timed out")
    try:
        for family, kind, protocol, _, address in _resolve(host, port, time_left)[:_ADDRESSES]:
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
    finally:
        del failed  # a cycle: its traceback has this frame, and so the callers' with their secrets


class Proxy(NamedTuple):
    """Host and port of an HTTP proxy, and headers for it, such as Proxy-Authorization, by name."""

    host: str
    port: int
    headers: Mapping[str, str] = {}


def open_tunnel(
    host: str, port: int, proxy: Proxy, seconds: float, time_left: TimeLeft
) -> "socket.socket":
    """Return a connection to a server through the tunnel (CONNECT) of a proxy.

    Args:
        host: Name or address of the server, which the proxy resolves.
        port: Port of the server.
        proxy: The proxy.
        seconds: Limit for each address of the proxy.
        time_left: Returns the seconds that are left.

    Raises:
        OSError: If the proxy cannot be reached or refuses, or its answer has no end within 64 KiB;
            TimeoutError if the time is up.
    """
    tunnel = connect_tcp(proxy.host, proxy.port, seconds, time_left)
    try:
        _request_tunnel(tunnel, host_header(host, port), proxy.headers, time_left)
    except BaseException:
        tunnel.close()
        raise
    return tunnel


def _request_tunnel(
    tunnel: "socket.socket", target: str, headers: Mapping[str, str], time_left: TimeLeft
) -> None:
    lines = [f"CONNECT {target} HTTP/1.1", f"Host: {target}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    tunnel.sendall("\r\n".join([*lines, "\r\n"]).encode("ascii"))
    head = bytearray()
    while not head.endswith((b"\r\n\r\n", b"\n\n")):
        if (left := time_left()) <= 0:
            raise TimeoutError
        tunnel.settimeout(left)
        # Byte by byte: what follows the head is of the server.
        if not (byte := tunnel.recv(1)) or len(head) == _MAX_PROXY_HEAD:
            raise OSError(errno.ECONNRESET, "the proxy's answer is incomplete, or over 64 KiB")
        head += byte
    found = _STATUS.match(head)
    status = "no HTTP/1.1" if found is None else found[1].decode()
    if status != "200":
        message = f"the proxy rejects the tunnel (CONNECT, answer: {status})"
        raise OSError(errno.ECONNREFUSED, message)


def _resolve(host: str, port: int, time_left: TimeLeft) -> list[Any]:
    """Return the addresses of host and TCP port as `socket.getaddrinfo` does, in the time left.

    `time_left` returns that time in seconds. A look-up that exceeds it continues in its thread,
    until the system's resolver gives up.
    """
    import socket

    with contextlib.suppress(socket.gaierror):  # an address needs no look-up
        return socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST)
    look_up = socket.getaddrinfo, host, port, 0, socket.SOCK_STREAM
    try:
        return _look_ups.call("attestkit-resolver", max(time_left(), 0), *look_up)
    except RuntimeError as error:  # no more threads
        raise OSError(errno.EAGAIN, "no thread for name resolution") from error


def start_tls(
    sock: "socket.socket", host: str, context: "ssl.SSLContext", time_left: TimeLeft
) -> "ssl.SSLSocket":
    """Return the socket after a TLS handshake on `sock`, which is closed if that fails.

    Args:
        sock: The connected socket.
        host: Name for SNI, which the certificate must have if `context` checks names.
        context: TLS settings.
        time_left: Returns the seconds that are left for the handshake.

    Raises:
        OSError: If the handshake fails, mostly ssl.SSLError; TimeoutError if the time is up.
    """
    try:
        sock.settimeout(max(time_left(), _SHORTEST))
        return context.wrap_socket(sock, server_hostname=host, suppress_ragged_eofs=False)
    except BaseException:
        sock.close()
        raise


class _TooLargeError(Exception):
    """The response exceeds a limit; the text of this error is the limit."""


def _describe(error: Exception, seconds: float) -> ExchangeError:
    """Return the ExchangeError for `error`, without parts of the response that it may contain.

    `seconds` is the time limit, for the text of a timeout.
    """
    from http.client import HTTPException, IncompleteRead, RemoteDisconnected

    if isinstance(error, _TooLargeError):
        return ExchangeError("too_large", f"response is over {error}")
    if isinstance(error, RemoteDisconnected):
        return ExchangeError("connection", "connection closed without a response")
    if isinstance(error, IncompleteRead):
        return ExchangeError("truncated", "the response is truncated")
    if isinstance(error, OSError):
        return _describe_os_error(error, seconds)
    what = "response" if isinstance(error, HTTPException) else "request"
    return ExchangeError("malformed", f"invalid HTTP {what} ({type(error).__name__})")


def _describe_os_error(error: OSError, seconds: float) -> ExchangeError:
    import ssl

    if isinstance(error, TimeoutError):
        failed = ExchangeError("timed_out", f"no response within {seconds:g} s")
    elif isinstance(error, ssl.SSLCertVerificationError):
        problem = one_line(error.verify_message, _LONGEST_TEXT)
        failed = ExchangeError("tls", f"server certificate: {problem}")
    elif isinstance(error, ssl.SSLError):
        failed = ExchangeError("tls", f"TLS failed: {error.reason or type(error).__name__}")
    else:
        failed = ExchangeError("connection", error.strerror or type(error).__name__)
    failed.__cause__ = error
    return failed


def _exchange(bounded: "_BoundedSocket", method: str, request: bytes) -> Response:
    from http.client import HTTPException, HTTPResponse

    failed: OSError | None = None
    try:
        bounded.sendall(request)
    except TimeoutError:
        raise
    except OSError as error:
        failed = error
    try:
        with HTTPResponse(cast("socket.socket", bounded), method=method) as response:
            response.begin()
            headers = _read_headers(response.headers)
            return Response(response.status, headers, _read_body(response, bounded.allow_body()))
    except (OSError, HTTPException) as error:
        if failed is None:
            raise
        raise failed from error
    finally:
        del failed  # as in `connect_tcp`


def _read_headers(fields: "Message") -> dict[str, str]:
    """Return header fields by their names in lower case; the values of repeated ones are joined.

    Raises:
        HTTPException: If the body has an encoding, which was not requested, or its length is
            stated in a way that readers understand differently.
    """
    from http.client import HTTPException

    found: dict[str, str] = {}
    for name, value in fields.items():
        known = found.get(name.lower())
        text = value.strip()
        found[name.lower()] = text if known is None else f"{known}, {text}"
    if found.get("content-encoding", "identity").lower() != "identity":
        raise HTTPException("content encoding not requested")
    length, coding = found.get("content-length"), found.get("transfer-encoding")
    if length is not None and (coding is not None or not _LENGTH.fullmatch(length)):
        raise HTTPException("ambiguous length")
    if coding is not None and coding.lower() != "chunked":
        raise HTTPException("transfer coding not supported")
    return found


def _read_body(response: "HTTPResponse", limit: int) -> bytes:
    """Return a body of at most `limit` bytes; memory is allocated only for received bytes."""
    from http.client import IncompleteRead

    body, declared = bytearray(), response.length or 0
    while max(declared, len(body)) <= limit:
        if not (piece := response.read(_PIECE)):
            break
        body += piece
    else:
        raise _TooLargeError(_size(limit))
    if response.length:
        raise IncompleteRead(b"", response.length)
    return bytes(body)


def _size(limit: int) -> str:
    return f"{limit >> 20} MiB" if limit >= 1 << 20 else f"{limit >> 10} KiB"


class _BoundedSocket(io.RawIOBase):
    """A connected socket for http.client with a deadline and a limit of received bytes."""

    def __init__(self, sock: "socket.socket", limits: ResponseLimits, time_left: TimeLeft) -> None:
        self._sock = sock
        self._body = limits.body
        self._time_left = time_left
        self._room = limits.head
        self._limit = f"{_size(limits.head)} before the body"

    def sendall(self, data: bytes) -> None:
        """Send all of `data`."""
        self._set_timeout()
        self._sock.sendall(data)

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return a buffered reader of the socket; `mode` must be "rb"."""
        assert mode == "rb"
        # The buffer is small, because bytes read ahead count against the limit of the head.
        return io.BufferedReader(self, buffer_size=_BUFFER)

    def allow_body(self) -> int:
        """Raise the limit from that of a head to that of a response; return that of a body."""
        self._room += self._body
        self._limit = _size(self._body)
        return self._body

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Receive into `buffer`; raise if the limit is exceeded."""
        self._set_timeout()
        size = self._sock.recv_into(buffer)
        self._room -= size
        if self._room < 0:
            raise _TooLargeError(self._limit)
        return size

    def _set_timeout(self) -> None:
        if (seconds := self._time_left()) <= 0:
            raise TimeoutError("timed out")
        self._sock.settimeout(seconds)
