"""Client of the host's quote generation service (QGS), which turns a TD report into a quote.

A TDX guest connects to it over vsock; on the host it may have a UNIX socket. Each connection has
one request and one response. The response is untrusted: sizes are checked before allocation, and
the whole response has a deadline.

Source: Intel's DCAP, QuoteGeneration/quote_wrapper/qgs_msg_lib (qgs_msg_lib.h) and tdx_attest.
"""

import errno
import os
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from attestkit._reasons import BackendReason, BackendUnavailableReason
from attestkit.backends.linux.syscalls import (
    REAL_CALLS,
    DeviceCalls,
    error_name,
    permissions,
    read_file,
)
from attestkit.errors import (
    BackendBusyError,
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)

__all__ = [
    "SHORTEST_QUOTE",
    "Address",
    "Deadlines",
    "Endpoint",
    "check_transport",
    "frame",
    "get_quote",
    "host_endpoint",
    "parse_endpoint",
    "parse_frame",
    "parse_quote_response",
    "quote_request",
    "read_configured_port",
    "too_short",
]

HOST_CID: Final = 2  # VMADDR_CID_HOST
_PYTHON_HAS_VSOCK: Final = hasattr(socket, "AF_VSOCK")
_VSOCK: Final[int] = getattr(socket, "AF_VSOCK", 40)  # Linux' number
REPORT_SIZE: Final = 1024
_LONGEST_PATH: Final = 107  # bytes; the limit of sockaddr_un
SHORTEST_QUOTE: Final = 1020  # bytes: version 3 or 4 without certificates

Address = tuple[str, int, int] | str | os.PathLike[str]  # ("vsock", cid, port) or a socket path


# -- addresses and configuration ---------------------------------------------------------------


class Endpoint(NamedTuple):
    """The address of a QGS."""

    family: int  # address family
    address: tuple[int, int] | str  # (cid, port) or a path

    def __str__(self) -> str:
        if isinstance(self.address, str):
            return self.address
        cid, port = self.address
        return f"vsock {cid}:{port}"


def host_endpoint(port: int) -> Endpoint:
    """Return the endpoint of the host's QGS at a vsock port."""
    return Endpoint(_VSOCK, (HOST_CID, port))


def parse_endpoint(address: object) -> Endpoint:
    """Return the endpoint of an address: ("vsock", cid, port) or the path of a UNIX socket.

    Raises:
        UsageError: If it is neither.
    """
    if isinstance(address, (str, os.PathLike)):
        path = os.fspath(address)
        if isinstance(path, str) and path and "\0" not in path:
            if len(os.fsencode(path)) > _LONGEST_PATH:
                raise UsageError(
                    f"qgs: socket path longer than {_LONGEST_PATH} bytes: {path!r}",
                    reason="too_large",
                )
            return Endpoint(socket.AF_UNIX, path)
    elif isinstance(address, tuple) and len(address) == 3:
        kind, cid, port = address
        if kind == "vsock" and _is_uint32(cid) and _is_uint32(port):
            return Endpoint(_VSOCK, (cid, port))
    raise UsageError(
        f'qgs: must be ("vsock", cid, port) or the path of a socket: {address!r}',
        reason="wrong_value",
    )


def _is_uint32(number: object) -> bool:
    return type(number) is int and 0 <= number < 1 << 32


_CONFIG_SIZE: Final = 64 << 10  # bytes
_LINE: Final = re.compile(rb"[ \t]*([^ \t=]+)[ \t]*=[ \t]*([0-9]{1,10})[ \t]*")


def read_configured_port(path: Path, *, calls: DeviceCalls = REAL_CALLS) -> int:
    """Return the vsock port in the guest's configuration (/etc/tdx-attest.conf), 1 to 65535.

    The file has one line `port = N`; blank lines and comments (`#`) are ignored.

    Raises:
        BackendUnavailableError: If the file is missing, not readable, or has no valid port.
    """
    try:
        data = read_file(path, _CONFIG_SIZE, calls=calls)
    except OSError as error:
        hint = ""
        reason: BackendUnavailableReason = "unreadable"
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            reason = "not_configured"
        elif error.errno in (errno.EACCES, errno.EPERM):
            reason = "permission_denied"
            hint = f": {permissions(path)}"
        raise BackendUnavailableError(
            f"QGS configuration {path}: cannot be read ({error_name(error)}){hint}",
            reason=reason,
            path=str(path),
        ) from error
    if len(data) > _CONFIG_SIZE:
        raise _bad_configuration(path, f"more than {_CONFIG_SIZE} bytes")
    return _port_in(data, path)


def _port_in(data: bytes, path: Path) -> int:
    port: int | None = None
    for number, line in enumerate(data.splitlines(), 1):
        content = line.partition(b"#")[0].strip(b" \t")
        if not content:
            continue
        setting = _LINE.fullmatch(content)
        if setting is None or setting[1] != b"port":
            problem = f"line {number}: not `port = N`: {content[:40]!r}"
            raise _bad_configuration(path, problem)
        if port is not None:
            raise _bad_configuration(path, f"line {number}: a second port")
        port = int(setting[2])
        if port > 0xFFFF:
            raise _bad_configuration(path, f"line {number}: port above 65535: {port}")
    if not port:
        raise _bad_configuration(path, "no port" if port is None else "port 0 disables vsock")
    return port


def _bad_configuration(path: Path, problem: str) -> BackendUnavailableError:
    return BackendUnavailableError(
        f"QGS configuration {path}: {problem}", reason="not_configured", path=str(path)
    )


def check_transport(endpoint: Endpoint) -> None:
    """Check that a socket of this address family can be created; do not connect.

    Raises:
        BackendUnavailableError: If it cannot be created.
    """
    _new_socket(endpoint).close()


# -- messages ----------------------------------------------------------------------------------

_FRAME: Final = Struct(">I")  # length of the message; all other fields are little-endian
_HEADER: Final = Struct("<HHIII")  # major and minor version, type, size, error code
# Header and two sizes: of the TD report and the key id list, or of the key id and the quote.
_REQUEST: Final = Struct("<HHIIIII")
_RESPONSE: Final = Struct("<HHIIIII")
_MAJOR: Final = 1
_MINOR: Final = 1
_GET_QUOTE_REQ: Final = 0
_GET_QUOTE_RESP: Final = 1
SHORTEST_MESSAGE: Final = _HEADER.size
LONGEST_MESSAGE: Final = 1 << 20  # bytes
_PIECE: Final = 64 << 10  # bytes per recv

CODES: Final[Mapping[int, str]] = {
    0x12001: "unexpected error",
    0x12002: "out of memory",
    0x12003: "invalid parameter",
    0x12004: "invalid version",
    0x12005: "invalid type",
    0x12006: "invalid size",
    0x12007: "invalid code",
}


def quote_request(report: bytes) -> bytes:
    """Return the GET_QUOTE request for a TD report, 1024 bytes, with any attestation key."""
    size = _REQUEST.size + len(report)
    return _REQUEST.pack(_MAJOR, _MINOR, _GET_QUOTE_REQ, size, 0, len(report), 0) + report


def parse_quote_response(message: bytes, path: str) -> bytes:
    """Return the quote in a GET_QUOTE response.

    Args:
        message: The response, without its length prefix.
        path: The source of the response, for errors.

    Raises:
        QuoteUnavailableError: If the service returned an error code or no quote.
        BackendError: If the response is malformed.
    """
    size, code = _read_header(message, path)
    if size < _RESPONSE.size:
        with_code = f", {_code(code)}" if code else ""
        raise _malformed(path, f"{size} bytes, expected at least {_RESPONSE.size}{with_code}")
    id_size, quote_size = _RESPONSE.unpack_from(message)[5:]
    if code and (id_size or quote_size):
        raise _malformed(path, f"{_code(code)}, but with data: {id_size} + {quote_size} bytes")
    if size != _RESPONSE.size + id_size + quote_size:
        problem = f"size fields (byte 16) {id_size} and {quote_size} in a message of {size} bytes"
        raise _malformed(path, problem)
    if code:
        raise QuoteUnavailableError(
            f"QGS at {path}: {_code(code)}; see the log of the QGS on the host (often the platform "
            "is not registered, or the PCCS is not reachable)",
            reason="quoting_service",
            path=path,
        )
    if quote_size < SHORTEST_QUOTE:
        raise too_short(path, quote_size)
    return message[_RESPONSE.size + id_size :]


def _read_header(message: bytes, path: str) -> tuple[int, int]:
    """Return size and error code of a GET_QUOTE response; raise BackendError if malformed."""
    if len(message) < _HEADER.size:
        raise _malformed(path, f"{len(message)} bytes, expected at least {_HEADER.size}")
    major, _, kind, size, code = _HEADER.unpack_from(message)
    if major != _MAJOR:
        raise _malformed(path, f"version (byte 0) {major}, expected {_MAJOR}")
    if kind != _GET_QUOTE_RESP:
        raise _malformed(path, f"type (byte 4) {kind}, expected {_GET_QUOTE_RESP}")
    if size != len(message):
        raise _malformed(path, f"size (byte 8) {size} in a message of {len(message)} bytes")
    return size, code


def _malformed(path: str, problem: str) -> BackendError:
    text = f"response from {path}: malformed: {problem}"
    return BackendError(text, reason="malformed_response", path=path)


def too_short(path: str, size: int) -> QuoteUnavailableError:
    """Return the error for a quote of `size` bytes, fewer than `SHORTEST_QUOTE`."""
    return QuoteUnavailableError(
        f"response from {path}: no quote: {size} bytes, the shortest quote has {SHORTEST_QUOTE}",
        reason="too_short" if size else "empty",
        path=path,
    )


def _code(code: int) -> str:
    return f"error {code:#010x} ({CODES.get(code, 'unknown error')})"


def frame(message: bytes) -> bytes:
    """Return a message with its length prefix: four bytes, big-endian."""
    return _FRAME.pack(len(message)) + message


def parse_frame(head: bytes, path: str) -> int:
    """Return the length in a length prefix, four bytes.

    Raises:
        BackendError: If the length is out of range.
    """
    (length,) = _FRAME.unpack(head)
    if not SHORTEST_MESSAGE <= length <= LONGEST_MESSAGE:
        problem = f"length {length}, expected {SHORTEST_MESSAGE} to {LONGEST_MESSAGE} bytes"
        raise _malformed(path, problem)
    return int(length)


# -- the exchange ------------------------------------------------------------------------------


class Deadlines(NamedTuple):
    """Timeouts of a QGS in seconds."""

    connect: float = 5.0
    answer: float = 30.0  # from the connection to the last byte of the response


def get_quote(
    endpoint: Endpoint,
    report: bytes,
    *,
    deadlines: Deadlines | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> bytes:
    """Request a quote for a TD report, 1024 bytes, from a QGS.

    Raises:
        UsageError: If `report` is not 1024 bytes.
        BackendUnavailableError: If vsock or the socket is missing or not accessible.
        BackendBusyError: If the QGS has too many pending connections.
        QuoteUnavailableError: If the QGS is down, too slow, or returned an error.
        BackendError: If the response is malformed.
    """
    if type(report) is not bytes or len(report) != REPORT_SIZE:
        raise UsageError(f"report: must be {REPORT_SIZE} bytes", reason="wrong_size")
    exchange = _Exchange(endpoint, deadlines or Deadlines(), clock)
    with _new_socket(endpoint) as connection:
        message = exchange.run(connection, quote_request(report))
    return parse_quote_response(message, str(endpoint))


def _new_socket(endpoint: Endpoint) -> socket.socket:
    if endpoint.family == _VSOCK and not _PYTHON_HAS_VSOCK:
        raise BackendUnavailableError(
            f"QGS at {endpoint}: this Python was built without vsock; use another Python",
            reason="missing_dependency",
            path=str(endpoint),
        )
    try:
        return socket.socket(endpoint.family, socket.SOCK_STREAM)
    except OSError as error:
        reason: BackendUnavailableReason = "cannot_connect"
        remedy = "close some files and retry"
        if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
            reason = "missing"
            remedy = "load the kernel module: modprobe vmw_vsock_virtio_transport"
        elif error.errno in (errno.EACCES, errno.EPERM):
            reason = "permission_denied"
            remedy = "allow it in the security policy, such as a container's seccomp profile"
        raise BackendUnavailableError(
            f"QGS at {endpoint}: cannot create a socket ({error_name(error)}); {remedy}",
            reason=reason,
            path=str(endpoint),
        ) from error


_Meaning = tuple[type[BackendError], BackendReason, str]  # with the remedy

_NOTHING_LISTENS: Final[_Meaning] = (
    QuoteUnavailableError,
    "cannot_connect",
    "start the QGS (qgsd) on the host, and compare the ports in both configurations",
)
_NO_VSOCK: Final[_Meaning] = (
    BackendUnavailableError,
    "missing",
    "start the guest with a vsock device (QEMU: vhost-vsock-pci)",
)
_FORBIDDEN: Final[_Meaning] = (
    BackendUnavailableError,
    "permission_denied",
    "allow this user to connect",
)
_UNKNOWN: Final[_Meaning] = (QuoteUnavailableError, "cannot_connect", "check the QGS on the host")

# The errors of connect(2).
_CONNECT_MEANINGS: Final[Mapping[int, _Meaning]] = {
    errno.ECONNREFUSED: _NOTHING_LISTENS,
    errno.ECONNRESET: _NOTHING_LISTENS,  # vsock resets in place of refusing
    errno.ENODEV: _NO_VSOCK,
    errno.EADDRNOTAVAIL: _NO_VSOCK,
    errno.ENETUNREACH: _NO_VSOCK,
    errno.EHOSTUNREACH: _NO_VSOCK,
    errno.EAFNOSUPPORT: _NO_VSOCK,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.ENOENT: (BackendUnavailableError, "missing", "start the QGS"),
    # A UNIX socket whose backlog is full; other sockets wait.
    errno.EAGAIN: (BackendBusyError, "overloaded", "too many pending connections, retry later"),
}


class _Exchange:
    """One request and its response, with timeouts."""

    def __init__(
        self, endpoint: Endpoint, deadlines: Deadlines, clock: Callable[[], float]
    ) -> None:
        self._endpoint = endpoint
        self._deadlines = deadlines
        self._clock = clock
        self._until = 0.0

    def run(self, connection: socket.socket, request: bytes) -> bytes:
        """Connect, send the request, and return the response without its length prefix."""
        connection.settimeout(self._deadlines.connect)
        try:
            connection.connect(self._endpoint.address)
        except OSError as error:
            raise self._not_connected(error) from error
        self._until = self._clock() + self._deadlines.answer
        try:
            self._limit(connection)
            connection.sendall(frame(request))
            head = self._read(connection, _FRAME.size, 0)
            length = parse_frame(head, str(self._endpoint))
            return self._read(connection, length, _FRAME.size)
        except TimeoutError as error:
            raise QuoteUnavailableError(
                f"QGS at {self._endpoint}: no response within {self._deadlines.answer:g} s; see "
                "its log on the host",
                reason="timed_out",
                path=str(self._endpoint),
            ) from error
        except OSError as error:
            raise QuoteUnavailableError(
                f"QGS at {self._endpoint}: connection lost ({error_name(error)}); {_CLOSED}",
                reason="connection_lost",
                path=str(self._endpoint),
            ) from error

    def _limit(self, connection: socket.socket) -> None:
        """Set the socket timeout to the remaining time."""
        left = self._until - self._clock()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)

    def _read(self, connection: socket.socket, size: int, before: int) -> bytes:
        """Read exactly `size` bytes, after `before` bytes of the response."""
        data = bytearray()
        while len(data) < size:
            self._limit(connection)
            piece = connection.recv(min(size - len(data), _PIECE))
            if not piece:
                got = before + len(data)
                if not got:
                    raise QuoteUnavailableError(
                        f"QGS at {self._endpoint}: connection closed, no response; {_CLOSED}",
                        reason="connection_lost",
                        path=str(self._endpoint),
                    )
                raise BackendError(
                    f"response from {self._endpoint}: truncated: {got} of {before + size} bytes",
                    reason="truncated",
                    path=str(self._endpoint),
                )
            data += piece
        return bytes(data)

    def _not_connected(self, error: OSError) -> BackendError:
        path = str(self._endpoint)
        if isinstance(error, TimeoutError):  # of the socket, or ETIMEDOUT
            return QuoteUnavailableError(
                f"QGS at {path}: no connection within {self._deadlines.connect:g} s; check the QGS "
                "on the host",
                reason="timed_out",
                path=path,
            )
        kind, reason, remedy = _CONNECT_MEANINGS.get(error.errno or 0, _UNKNOWN)
        text = f"QGS at {path}: cannot connect ({error_name(error)}); {remedy}"
        return kind(text, reason=reason, path=path)


_CLOSED: Final = (
    "see its log on the host (before DCAP 1.16 a QGS closes the connection on an unknown message, "
    "later on a failure)"
)
