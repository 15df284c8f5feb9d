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
from dataclasses import dataclass, field
from pathlib import Path
from struct import Struct
from typing import Final, NamedTuple

from attestkit.backends.linux.device_errors import (
    ABSENT,
    DENIED,
    Meaning,
    access_error,
    busy,
    error_name,
    failed,
    no_quote,
    translate_errno,
    unavailable,
)
from attestkit.backends.linux.syscalls import REAL_CALLS, DeviceCalls, read_file
from attestkit.errors import (
    BackendError,
    BackendUnavailableError,
    QuoteUnavailableError,
    UsageError,
)

HOST_CID: Final = 2  # VMADDR_CID_HOST
_PYTHON_HAS_VSOCK: Final = hasattr(socket, "AF_VSOCK")
_VSOCK: Final[int] = getattr(socket, "AF_VSOCK", 40)  # Linux' number
REPORT_SIZE: Final = 1024
_LONGEST_PATH: Final = 107  # bytes; the limit of sockaddr_un
SHORTEST_QUOTE: Final = 1020  # bytes: version 3 or 4 without certificates

Address = tuple[str, int, int] | str | os.PathLike[str]  # ("vsock", cid, port) or a socket path


# -- addresses and configuration ---------------------------------------------------------------


class Endpoint(NamedTuple):
    """The address of a QGS to connect to: vsock, or a UNIX socket."""

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
        UsageError: If it is neither, or the path is longer than 107 bytes.
    """
    if isinstance(address, (str, os.PathLike)):
        path = os.fspath(address)
        if isinstance(path, str) and path and "\0" not in path:
            if len(os.fsencode(path)) > _LONGEST_PATH:
                text = f"qgs: socket path must be at most {_LONGEST_PATH} bytes: {path!r}"
                raise UsageError(text, reason="too_large")
            return Endpoint(socket.AF_UNIX, path)
    elif isinstance(address, tuple) and len(address) == 3:
        kind, cid, port = address
        if kind == "vsock" and _is_uint32(cid) and _is_uint32(port):
            return Endpoint(_VSOCK, (cid, port))
    text = f'qgs: must be ("vsock", cid, port) or the path of a socket, not {address!r}'
    raise UsageError(text, reason="wrong_value")


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
        text = "QGS configuration: cannot be read"
        if error.errno in DENIED:
            raise access_error(path, text, error) from error
        text += f" ({error_name(error)})"
        if error.errno in ABSENT:
            raise unavailable(path, text, "not_configured") from error
        raise unavailable(path, text, "unreadable") from error
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
            raise _bad_configuration(path, f"line {number}: must be `port = N`: {content[:40]!r}")
        if port is not None:
            raise _bad_configuration(path, f"line {number}: repeats the port; remove one")
        port = int(setting[2])
        if port > 0xFFFF:
            raise _bad_configuration(path, f"line {number}: port must be 1 to 65535, not {port}")
    if not port:
        raise _bad_configuration(path, "no `port = N`" if port is None else "port 0 disables vsock")
    return port


def _bad_configuration(path: Path, problem: str) -> BackendUnavailableError:
    return unavailable(path, f"QGS configuration: {problem}", "not_configured")


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
    """Return the GET_QUOTE request for a TD report, 1024 bytes; any attestation key may sign."""
    size = _REQUEST.size + len(report)
    return _REQUEST.pack(_MAJOR, _MINOR, _GET_QUOTE_REQ, size, 0, len(report), 0) + report


def parse_quote_response(message: bytes, path: object) -> bytes:
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
        raise malformed(path, f"{size} bytes, expected at least {_RESPONSE.size}{with_code}")
    id_size, quote_size = _RESPONSE.unpack_from(message)[5:]
    if code and (id_size or quote_size):
        raise malformed(path, f"{_code(code)}, but with data: {id_size} + {quote_size} bytes")
    if size != _RESPONSE.size + id_size + quote_size:
        problem = f"size fields (byte 16) {id_size} and {quote_size} in a message of {size} bytes"
        raise malformed(path, problem)
    if code:
        text = (
            f"{_code(code)}; see the log of the QGS on the host (often the platform is not "
            "registered, or the PCCS is not reachable)"
        )
        raise no_quote(path, text, "quoting_service")
    if quote_size < SHORTEST_QUOTE:
        raise too_short(path, quote_size)
    return message[_RESPONSE.size + id_size :]


def _read_header(message: bytes, path: object) -> tuple[int, int]:
    """Return size in bytes and error code (0: success) of `message`, a GET_QUOTE response.

    BackendError, which names the source `path`, if the header is malformed.
    """
    if len(message) < _HEADER.size:
        raise malformed(path, f"{len(message)} bytes, expected at least {_HEADER.size}")
    major, _, kind, size, code = _HEADER.unpack_from(message)
    if major != _MAJOR:
        raise malformed(path, f"version (byte 0) {major}, expected {_MAJOR}")
    if kind != _GET_QUOTE_RESP:
        raise malformed(path, f"type (byte 4) {kind}, expected {_GET_QUOTE_RESP}")
    if size != len(message):
        raise malformed(path, f"size (byte 8) {size} in a message of {len(message)} bytes")
    return size, code


def malformed(path: object, problem: str) -> BackendError:
    """Return the error for a malformed response from `path`; `problem` describes the fault."""
    return failed(path, f"malformed response: {problem}", "malformed_response")


def too_short(path: object, size: int) -> QuoteUnavailableError:
    """Return the error for a quote of `size` bytes, fewer than `SHORTEST_QUOTE`, from `path`."""
    text = f"no quote: {size} bytes, the shortest quote has {SHORTEST_QUOTE}"
    return no_quote(path, text, "too_short" if size else "empty")


def _code(code: int) -> str:
    return f"error {code:#010x} ({CODES.get(code, 'unknown error')})"


def frame(message: bytes) -> bytes:
    """Return a message with its length prefix: four bytes, big-endian."""
    return _FRAME.pack(len(message)) + message


def parse_frame(head: bytes, path: object) -> int:
    """Return the length of a message in bytes from `head`, its length prefix of four bytes.

    `path` is the source of the message, for errors.

    Raises:
        BackendError: If the length is not 16 bytes to 1 MiB.
    """
    (length,) = _FRAME.unpack(head)
    if not SHORTEST_MESSAGE <= length <= LONGEST_MESSAGE:
        problem = f"length {length}, expected {SHORTEST_MESSAGE} to {LONGEST_MESSAGE} bytes"
        raise malformed(path, problem)
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
    """Request a quote for a TD report, 1024 bytes, from a QGS; return the raw quote.

    Args:
        endpoint: Address of the QGS.
        report: The TD report.
        deadlines: Timeouts; None: the defaults of `Deadlines`.
        clock: Returns monotonic seconds.

    Raises:
        UsageError: If `report` is not 1024 bytes.
        BackendUnavailableError: If vsock or the socket is missing or not accessible.
        BackendBusyError: If the QGS has too many pending connections.
        QuoteUnavailableError: If the QGS is down, too slow, or returned an error.
        BackendError: If the response is malformed or truncated.
    """
    if type(report) is not bytes or len(report) != REPORT_SIZE:
        given = len(report) if type(report) is bytes else type(report).__name__
        raise UsageError(f"report: must be {REPORT_SIZE} bytes, not {given}", reason="wrong_size")
    with _new_socket(endpoint) as connection:
        exchange = _Exchange(connection, endpoint, deadlines or Deadlines(), clock)
        message = exchange.run(quote_request(report))
    return parse_quote_response(message, endpoint)


def _new_socket(endpoint: Endpoint) -> socket.socket:
    if endpoint.family == _VSOCK and not _PYTHON_HAS_VSOCK:
        text = "this Python was built without vsock; use another Python"
        raise unavailable(endpoint, text, "missing_dependency")
    try:
        return socket.socket(endpoint.family, socket.SOCK_STREAM)
    except OSError as error:
        text, otherwise = "cannot create a socket", _TOO_MANY_FILES
        raise translate_errno(endpoint, text, error, _SOCKET_MEANINGS, otherwise) from error


_MODPROBE: Final = "load the kernel module: modprobe vmw_vsock_virtio_transport"
_POLICY: Final = "allow it in the security policy, such as a container's seccomp profile"
_TOO_MANY_FILES: Final[Meaning] = (unavailable, "cannot_connect", "close some files and retry")
_SOCKET_MEANINGS: Final[Mapping[int, Meaning]] = {
    errno.EAFNOSUPPORT: (unavailable, "missing", _MODPROBE),
    errno.EPROTONOSUPPORT: (unavailable, "missing", _MODPROBE),
    **dict.fromkeys(DENIED, (unavailable, "permission_denied", _POLICY)),
}

_START: Final = "not listening; start the QGS (qgsd) on the host, and compare the ports of both"
_NOTHING_LISTENS: Final[Meaning] = (no_quote, "cannot_connect", _START)
_DEVICE: Final = "no vsock; start the guest with a vsock device (QEMU: vhost-vsock-pci)"
_NO_VSOCK: Final[Meaning] = (unavailable, "missing", _DEVICE)
_UNKNOWN: Final[Meaning] = (no_quote, "cannot_connect", "check the QGS on the host")
_ALLOW: Final = "no permission; allow this user to connect"

# The errors of connect(2).
_CONNECT_MEANINGS: Final[Mapping[int, Meaning]] = {
    errno.ECONNREFUSED: _NOTHING_LISTENS,
    errno.ECONNRESET: _NOTHING_LISTENS,  # vsock resets in place of refusing
    errno.ENODEV: _NO_VSOCK,
    errno.EADDRNOTAVAIL: _NO_VSOCK,
    errno.ENETUNREACH: _NO_VSOCK,
    errno.EHOSTUNREACH: _NO_VSOCK,
    errno.EAFNOSUPPORT: _NO_VSOCK,
    **dict.fromkeys(DENIED, (unavailable, "permission_denied", _ALLOW)),
    errno.ENOENT: (unavailable, "missing", "no such socket; start the QGS"),
    # A UNIX socket whose backlog is full; other sockets wait.
    errno.EAGAIN: (busy, "overloaded", "too many pending connections; retry later"),
}


@dataclass(eq=False, repr=False)
class _Exchange:
    """One request and its response, with timeouts."""

    connection: socket.socket  # not yet connected
    endpoint: Endpoint  # of the quoting service
    deadlines: Deadlines  # time limits of the steps, in seconds
    clock: Callable[[], float]  # monotonic, in seconds
    _until: float = field(default=0.0, init=False)  # end of the current step, by `clock`

    def run(self, request: bytes) -> bytes:
        """Connect, send the request, and return the response without its length prefix."""
        self.connection.settimeout(self.deadlines.connect)
        try:
            self.connection.connect(self.endpoint.address)
        except OSError as error:
            raise self._not_connected(error) from error
        self._until = self.clock() + self.deadlines.answer
        try:
            self._limit()
            self.connection.sendall(frame(request))
            length = parse_frame(self._read(_FRAME.size, 0), self.endpoint)
            return self._read(length, _FRAME.size)
        except TimeoutError as error:
            text = f"no response within {self.deadlines.answer:g} s; see the log of the QGS"
            raise no_quote(self.endpoint, text, "timed_out") from error
        except OSError as error:
            text = f"connection lost ({error_name(error)}); {_CLOSED}"
            raise no_quote(self.endpoint, text, "connection_lost") from error

    def _limit(self) -> None:
        """Set the socket timeout to the remaining time."""
        left = self._until - self.clock()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)

    def _read(self, size: int, before: int) -> bytes:
        """Read exactly `size` bytes; `before` is the number of bytes read already, for errors."""
        data = bytearray()
        while len(data) < size:
            self._limit()
            piece = self.connection.recv(min(size - len(data), _PIECE))
            if not piece:
                got = before + len(data)
                if not got:
                    text = f"connection closed, no response; {_CLOSED}"
                    raise no_quote(self.endpoint, text, "connection_lost")
                text = f"truncated response: {got} of {before + size} bytes"
                raise failed(self.endpoint, text, "truncated")
            data += piece
        return bytes(data)

    def _not_connected(self, error: OSError) -> BackendError:
        if isinstance(error, TimeoutError):  # of the socket, or ETIMEDOUT
            text = f"no connection to the QGS within {self.deadlines.connect:g} s; check the host"
            return no_quote(self.endpoint, text, "timed_out")
        text = "cannot connect to the QGS"
        return translate_errno(self.endpoint, text, error, _CONNECT_MEANINGS, _UNKNOWN)


_CLOSED: Final = (
    "see the log of the QGS on the host (before DCAP 1.16 a QGS closes the connection on an "
    "unknown message, later on a failure)"
)
