"""The host's quote generation service (QGS): a TD report goes in, a signed quote comes out.

A TDX guest reaches it over vsock; on the host itself it may have a UNIX socket. One request, one
answer, then the connection is over. Everything that comes back is the host's word: sizes are
checked before a byte is kept, and the time for an answer is limited as a whole.

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
    "configured_port",
    "frame",
    "get_quote",
    "host_endpoint",
    "parse_endpoint",
    "parse_frame",
    "parse_quote_response",
    "quote_request",
]

HOST_CID: Final = 2  # VMADDR_CID_HOST
_PYTHON_HAS_VSOCK: Final = hasattr(socket, "AF_VSOCK")
_VSOCK: Final[int] = getattr(socket, "AF_VSOCK", 40)  # Linux' number
REPORT_SIZE: Final = 1024
_LONGEST_PATH: Final = 107  # bytes, which sockaddr_un has room for
SHORTEST_QUOTE: Final = 1020  # bytes: a quote of version 3 or 4 without a certificate

Address = tuple[str, int, int] | str | os.PathLike[str]  # ("vsock", cid, port), or a socket's path


# -- where it is -------------------------------------------------------------------------------


class Endpoint(NamedTuple):
    """Where a QGS listens."""

    family: int  # of sockets
    address: tuple[int, int] | str  # (cid, port), or a path

    def __str__(self) -> str:
        if isinstance(self.address, str):
            return f"the QGS at {self.address}"
        cid, port = self.address
        return f"the QGS at vsock {cid}:{port}"


def host_endpoint(port: int) -> Endpoint:
    """Return where a guest finds its host's QGS."""
    return Endpoint(_VSOCK, (HOST_CID, port))


def parse_endpoint(address: object) -> Endpoint:
    """Return the endpoint that an option names: ("vsock", cid, port), or a UNIX socket's path.

    Raises:
        UsageError: It is neither.
    """
    if isinstance(address, (str, os.PathLike)):
        path = os.fspath(address)
        if isinstance(path, str) and path and "\0" not in path:
            if len(os.fsencode(path)) > _LONGEST_PATH:
                raise UsageError(f"a socket's path has at most {_LONGEST_PATH} bytes: {path!r}")
            return Endpoint(socket.AF_UNIX, path)
    elif isinstance(address, tuple) and len(address) == 3:
        kind, cid, port = address
        if kind == "vsock" and _is_word(cid) and _is_word(port):
            return Endpoint(_VSOCK, (cid, port))
    raise UsageError(f'a QGS is at ("vsock", cid, port) or at a socket\'s path, not {address!r}')


def _is_word(number: object) -> bool:
    return type(number) is int and 0 <= number < 1 << 32


_CONFIG_SIZE: Final = 64 << 10  # bytes
_LINE: Final = re.compile(rb"[ \t]*([^ \t=]+)[ \t]*=[ \t]*([0-9]{1,10})[ \t]*")


def configured_port(path: Path, *, calls: DeviceCalls = REAL_CALLS) -> int:
    """Return the vsock port that a guest's configuration (/etc/tdx-attest.conf) names, above 0.

    Its lines are `port = N`, blank, or, from a `#` on, comment.

    Raises:
        BackendUnavailableError: It names none, there is no such file, or a line is wrong; the text
            says which.
    """
    try:
        data = read_file(path, _CONFIG_SIZE, calls=calls)
    except OSError as error:
        hint = ""
        if error.errno in (errno.EACCES, errno.EPERM):
            hint = f": {permissions(path)}"
        raise BackendUnavailableError(
            f"no QGS is configured: {path} cannot be read ({error_name(error)}){hint}"
        ) from error
    if len(data) > _CONFIG_SIZE:
        raise BackendUnavailableError(f"{path} has more than {_CONFIG_SIZE} bytes")
    port: int | None = None
    for number, line in enumerate(data.splitlines(), 1):
        content = line.partition(b"#")[0].strip(b" \t")
        if not content:
            continue
        value = _port_in(content, f"{path}, line {number}")
        if port is not None:
            raise BackendUnavailableError(f"{path}, line {number}: a second port")
        port = value
    if not port:
        why = "no line names a port" if port is None else "port 0 means none"
        raise BackendUnavailableError(f"no QGS is configured: {path}: {why}")
    return port


def _port_in(content: bytes, where: str) -> int:
    line = _LINE.fullmatch(content)
    if line is None or line[1] != b"port":
        raise BackendUnavailableError(f"{where}: want `port = N`, found {content[:40]!r}")
    port = int(line[2])
    if port > 0xFFFF:
        raise BackendUnavailableError(f"{where}: port {port} is above 65535")
    return port


def check_transport(endpoint: Endpoint) -> None:
    """Make sure that sockets of this family can be had; nothing is connected.

    Raises:
        BackendUnavailableError: They cannot.
    """
    _new_socket(endpoint).close()


# -- messages ----------------------------------------------------------------------------------

_FRAME: Final = Struct(">I")  # length of the message; everything else is little-endian
_HEADER: Final = Struct("<HHIII")  # major and minor version, type, size, error code
# The header, then two sizes: of a report and the list of key ids, or of a key id and the quote.
_REQUEST: Final = Struct("<HHIIIII")
_RESPONSE: Final = Struct("<HHIIIII")
_MAJOR: Final = 1
_MINOR: Final = 1
_GET_QUOTE_REQ: Final = 0
_GET_QUOTE_RESP: Final = 1
SHORTEST_MESSAGE: Final = _HEADER.size
LONGEST_MESSAGE: Final = 1 << 20  # bytes
_PIECE: Final = 64 << 10  # bytes to ask for at once

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
    """Return the message that asks for a quote of a TD report, 1024 bytes, by any key."""
    size = _REQUEST.size + len(report)
    return _REQUEST.pack(_MAJOR, _MINOR, _GET_QUOTE_REQ, size, 0, len(report), 0) + report


def parse_quote_response(message: bytes, said_by: str) -> bytes:
    """Return the quote in an answer.

    Args:
        message: The answer, without the length before it.
        said_by: Whose answer it is, for the texts of errors.

    Raises:
        QuoteUnavailableError: The service says that it failed, or gave less than a quote.
        BackendError: The answer breaks its format; the text names the byte.
    """
    size, code = _read_header(message, said_by)
    failure = f"{said_by} refused: {_code(code)}"
    if size < _RESPONSE.size:
        said = f"; {failure}" if code else ""
        raise BackendError(f"{said_by} sent {size} bytes, an answer has {_RESPONSE.size}{said}")
    id_size, quote_size = _RESPONSE.unpack_from(message)[5:]
    if code and (id_size or quote_size):
        raise BackendError(f"{failure}, and sent {id_size} and {quote_size} bytes with it")
    if size != _RESPONSE.size + id_size + quote_size:
        raise BackendError(
            f"{said_by} sent {size} bytes, the sizes in them (byte 16) are {id_size}, {quote_size}"
        )
    if code:
        raise QuoteUnavailableError(
            f"{failure}; its log on the host tells why (often: the platform is not registered, or "
            "its PCCS cannot be reached)"
        )
    if quote_size < SHORTEST_QUOTE:
        raise QuoteUnavailableError(
            f"{said_by} gave {quote_size} bytes, the shortest quote has {SHORTEST_QUOTE}"
        )
    return message[_RESPONSE.size + id_size :]


def _read_header(message: bytes, said_by: str) -> tuple[int, int]:
    """Return size and error code of an answer to GET_QUOTE; BackendError if it is none."""
    if len(message) < _HEADER.size:
        raise BackendError(f"{said_by} sent {len(message)} bytes, its header has {_HEADER.size}")
    major, _, kind, size, code = _HEADER.unpack_from(message)
    if major != _MAJOR:
        raise BackendError(f"{said_by} speaks version {major} (byte 0), not {_MAJOR}")
    if kind != _GET_QUOTE_RESP:
        raise BackendError(f"{said_by} sent a message of type {kind} (byte 4), not 1")
    if size != len(message):
        raise BackendError(
            f"{said_by} sent {len(message)} bytes, their header says {size} (byte 8)"
        )
    return size, code


def _code(code: int) -> str:
    return f"error {code:#010x}, {CODES.get(code, 'not a code of its list')}"


def frame(message: bytes) -> bytes:
    """Return a message with its length before it: four bytes, big-endian."""
    return _FRAME.pack(len(message)) + message


def parse_frame(head: bytes, said_by: str) -> int:
    """Return the length of the message that follows these four bytes.

    Raises:
        BackendError: No message is as short, or as long.
    """
    (length,) = _FRAME.unpack(head)
    if not SHORTEST_MESSAGE <= length <= LONGEST_MESSAGE:
        raise BackendError(
            f"{said_by} announced a message of {length} bytes, "
            f"want {SHORTEST_MESSAGE} to {LONGEST_MESSAGE}"
        )
    return int(length)


# -- the exchange ------------------------------------------------------------------------------


class Deadlines(NamedTuple):
    """How long a QGS may take, in seconds."""

    connect: float = 5.0
    answer: float = 30.0  # from the connection to the last byte


def get_quote(
    endpoint: Endpoint,
    report: bytes,
    *,
    deadlines: Deadlines | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> bytes:
    """Return the quote that a QGS makes of a TD report, 1024 bytes.

    Raises:
        UsageError: `report` is not 1024 bytes.
        BackendUnavailableError: There is no way to a QGS here.
        BackendBusyError: Too many wait for it already.
        QuoteUnavailableError: There is one, and nobody answers, or not in time, or with a failure.
        BackendError: The answer breaks its format.
    """
    if type(report) is not bytes or len(report) != REPORT_SIZE:
        raise UsageError(f"a TD report is {REPORT_SIZE} bytes")
    exchange = _Exchange(endpoint, deadlines or Deadlines(), clock)
    with _new_socket(endpoint) as connection:
        message = exchange.run(connection, quote_request(report))
    return parse_quote_response(message, str(endpoint))


def _new_socket(endpoint: Endpoint) -> socket.socket:
    if endpoint.family == _VSOCK and not _PYTHON_HAS_VSOCK:
        raise BackendUnavailableError(
            f"{endpoint} needs vsock, which this Python was built without"
        )
    try:
        return socket.socket(endpoint.family, socket.SOCK_STREAM)
    except OSError as error:
        hint = "try again with fewer open files"
        if error.errno in (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT):
            hint = "load the kernel's module (modprobe vmw_vsock_virtio_transport)"
        elif error.errno in (errno.EACCES, errno.EPERM):
            hint = "a security policy forbids it (a container's seccomp profile may)"
        raise BackendUnavailableError(
            f"{endpoint} needs a socket that cannot be made ({error_name(error)}): {hint}"
        ) from error


_NOTHING_LISTENS: Final = (
    QuoteUnavailableError,
    "nothing listens there; start the host's QGS (qgsd), and compare the ports of both sides",
)
_NO_VSOCK: Final = (
    BackendUnavailableError,
    "there is no vsock to the host; start the guest with a device for it (QEMU: vhost-vsock-pci)",
)
_FORBIDDEN: Final = (BackendUnavailableError, "we may not connect")

# What connect says, and what to do.
_CONNECT_MEANINGS: Final[Mapping[int, tuple[type[BackendError], str]]] = {
    errno.ECONNREFUSED: _NOTHING_LISTENS,
    errno.ECONNRESET: _NOTHING_LISTENS,  # vsock resets in place of refusing
    errno.ENODEV: _NO_VSOCK,
    errno.EADDRNOTAVAIL: _NO_VSOCK,
    errno.ENETUNREACH: _NO_VSOCK,
    errno.EHOSTUNREACH: _NO_VSOCK,
    errno.EAFNOSUPPORT: _NO_VSOCK,
    errno.EACCES: _FORBIDDEN,
    errno.EPERM: _FORBIDDEN,
    errno.ENOENT: (BackendUnavailableError, "there is no such socket; is the QGS up?"),
    # A UNIX socket says so at once where others wait.
    errno.EAGAIN: (BackendBusyError, "too many wait for it already; try again later"),
}


class _Exchange:
    """One request and its answer, in time."""

    def __init__(
        self, endpoint: Endpoint, deadlines: Deadlines, clock: Callable[[], float]
    ) -> None:
        self._endpoint = endpoint
        self._deadlines = deadlines
        self._clock = clock
        self._until = 0.0

    def run(self, connection: socket.socket, request: bytes) -> bytes:
        """Connect, ask, and return the answer's message."""
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
                f"{self._endpoint} did not answer within {self._deadlines.answer:g} s"
            ) from error
        except OSError as error:
            raise QuoteUnavailableError(
                f"{self._endpoint} broke the connection off ({error_name(error)}): {_CLOSED}"
            ) from error

    def _limit(self, connection: socket.socket) -> None:
        """Let the next call take what is left of the time."""
        left = self._until - self._clock()
        if left <= 0:
            raise TimeoutError
        connection.settimeout(left)

    def _read(self, connection: socket.socket, size: int, before: int) -> bytes:
        """Read exactly `size` bytes, behind `before` bytes of the answer that are known."""
        data = bytearray()
        while len(data) < size:
            self._limit(connection)
            piece = connection.recv(min(size - len(data), _PIECE))
            if not piece:
                got = before + len(data)
                if not got:
                    raise QuoteUnavailableError(
                        f"{self._endpoint} closed the connection without an answer: {_CLOSED}"
                    )
                raise BackendError(
                    f"{self._endpoint} closed the connection after {got} of {before + size} bytes"
                )
            data += piece
        return bytes(data)

    def _not_connected(self, error: OSError) -> BackendError:
        said = f"{self._endpoint} cannot be reached"
        if isinstance(error, TimeoutError):  # ours, or the kernel's ETIMEDOUT
            return QuoteUnavailableError(
                f"{said}: no connection within {self._deadlines.connect:g} s; is the host's QGS up?"
            )
        unknown = (QuoteUnavailableError, "is the host's QGS up?")
        kind, text = _CONNECT_MEANINGS.get(error.errno or 0, unknown)
        return kind(f"{said} ({error_name(error)}): {text}")


_CLOSED: Final = (
    "an old QGS (before DCAP 1.16) does so for a message it does not know, a newer one when it "
    "fails; its log on the host tells why"
)
