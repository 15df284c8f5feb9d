"""Quote generation service: converts TD reports to quotes, over a stream socket.

Frames are those of Intel's QGS: a 32-bit big-endian length, then a little-endian message. As since
DCAP 1.21, a bare report of 1024 bytes is answered by a bare quote. A connection of the socket has
one request and one response; other services use its server, too.
"""

import contextlib
import os
import re
import socket
import struct
import threading
from pathlib import Path
from select import select
from typing import Final

from attestkit.backends.linux.device_errors import failed
from attestkit.backends.simulator.faults.fault_specs import Faults
from attestkit.backends.simulator.td_reports import ReportQuoter
from attestkit.errors import FormatError, UsageError

_IDLE: Final = 30.0  # seconds, as Intel's quote generation service


def open_listener(address: str | tuple[int, int], name: str, service: str) -> socket.socket:
    """Return a listening stream socket.

    Args:
        address: Path of a Unix socket, or CID and port of vsock. A socket at that path is replaced,
            since a killed service may have left it; any other file there is an error.
        name: The address as text, for errors.
        service: Name of the service for errors.

    Raises:
        BackendError: If the address cannot be bound.
    """
    listener: socket.socket | None = None
    try:
        if isinstance(address, str):
            if Path(address).is_socket():
                Path(address).unlink(missing_ok=True)
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        else:
            listener = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
        listener.bind(address)
        listener.listen()
    except OSError as error:
        if listener is not None:
            listener.close()
        text = f"{service}: cannot listen: {error.strerror or error}"
        raise failed(name, text, "io_error") from error
    return listener


class SocketService:
    """A service on a listening socket, which it closes; each client has a thread.

    Args:
        listener: A stream socket of any family.
        name: Name of the accepting thread.
    """

    def __init__(self, listener: socket.socket, name: str) -> None:
        self._listener = listener
        self._name = name
        # Closing one end wakes the accepting thread; on vsock a shutdown does not.
        self._end, self._ended = socket.socketpair()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread that accepts clients."""
        self._thread = threading.Thread(target=self._accept, name=self._name, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop accepting clients, and remove the path of a Unix socket."""
        with contextlib.suppress(OSError):
            if self._listener.family == socket.AF_UNIX:
                Path(self._listener.getsockname()).unlink(missing_ok=True)
        self._end.close()
        if self._thread is not None:
            self._thread.join()
        self._ended.close()
        self._listener.close()

    def _accept(self) -> None:
        self._listener.settimeout(0)
        while self._ended not in select([self._listener, self._ended], [], [])[0]:
            with contextlib.suppress(OSError):  # the client has disconnected
                client, _ = self._listener.accept()
                client.settimeout(_IDLE)
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """Process one request of the connection `client`, then disconnect."""
        with client, contextlib.suppress(OSError, FormatError):
            client.sendall(self._respond(client))

    def _respond(self, client: socket.socket) -> bytes:
        """Receive a request from the connection `client`, and return the response.

        Raises:
            FormatError: If the request is malformed; the client is disconnected then.
        """
        raise NotImplementedError


def receive(client: socket.socket, size: int) -> bytes:
    """Receive exactly `size` bytes from the connection `client`.

    Raises:
        FormatError: If the client disconnects before.
        OSError: If the connection fails, or times out.
    """
    data = b""
    while len(data) < size:
        chunk = client.recv(size - len(data))
        if not chunk:
            text = "request: truncated, because the client disconnected"
            raise FormatError(text, reason="truncated", offset=len(data))
        data += chunk
    return data


_HEADER: Final = struct.Struct("<HHIII")  # major, minor, type, size, error code
_SIZES: Final = struct.Struct("<II")
_HEAD: Final = _HEADER.size + _SIZES.size
_LENGTH: Final = struct.Struct(">I")
_GET_QUOTE_REQ, _GET_QUOTE_RESP = 0, 1
_UNEXPECTED: Final = 0x12001
_TD_REPORT: Final = 0x81  # type of the report, its first byte
_INVALID_VERSION: Final = 0x12004
_INVALID_TYPE: Final = 0x12005
_INVALID_SIZE: Final = 0x12006
_REPORT_SIZE: Final = 1024
_LONGEST: Final = 1 << 16  # maximum size of a request; without key ids it has 1048 bytes
# Attestation key id of Intel's TD quoting enclave.
_KEY_ID: Final = bytes.fromhex("e86c046e8cc44d958173fc43c1fa4f3f")


def answer_request(quoter: ReportQuoter, request: bytes) -> bytes:
    """Return the response to `request`, a GET_QUOTE_REQ; both have a length prefix of 4 bytes.

    An invalid request gets a response with an error code.

    Raises:
        FormatError: If the frame is malformed; the service disconnects then.
    """
    length = int.from_bytes(request[: _LENGTH.size], "big")
    if min(length, len(request) - _LENGTH.size) < _HEADER.size:
        raise FormatError("request: shorter than its header", reason="truncated", offset=0)
    message = request[_LENGTH.size : _LENGTH.size + length]  # a driver's buffer may be longer
    if len(message) != length:
        raise FormatError("request: shorter than its length field", reason="truncated", offset=0)
    reply = _process_request(quoter, message)
    return _LENGTH.pack(len(reply)) + reply


def _process_request(quoter: ReportQuoter, message: bytes) -> bytes:
    major, minor, kind, size, _ = _HEADER.unpack_from(message)
    if major != 1:
        return _error_response(minor, _INVALID_VERSION)
    if kind != _GET_QUOTE_REQ:
        return _error_response(minor, _INVALID_TYPE)
    if size != len(message) or size < _HEAD:
        return _error_response(minor, _INVALID_SIZE)
    report_size, ids_size = _SIZES.unpack_from(message, _HEADER.size)
    if report_size != _REPORT_SIZE or size != _HEAD + report_size + ids_size or ids_size % 16:
        return _error_response(minor, _INVALID_SIZE)
    report, ids = message[_HEAD : _HEAD + report_size], message[_HEAD + report_size :]
    return _process_quote(quoter, report, ids, minor)


def _process_quote(quoter: ReportQuoter, report: bytes, ids: bytes, minor: int) -> bytes:
    """Return the response, without length prefix, with a quote or with an error code.

    Args:
        quoter: The quoting enclave.
        report: TD report of the request, 1024 bytes.
        ids: Ids of the attestation keys that the client accepts, 16 bytes each; empty: any key.
        minor: Minor version of the protocol for the response.
    """
    key_ids = [ids[at : at + 16] for at in range(0, len(ids), 16)]
    if key_ids and _KEY_ID not in key_ids:
        return _error_response(minor, _UNEXPECTED)
    try:
        quote = quoter.quote(report)
    except FormatError:
        return _error_response(minor, _UNEXPECTED)
    size = _HEAD + len(_KEY_ID) + len(quote)
    head = _HEADER.pack(1, minor, _GET_QUOTE_RESP, size, 0)
    return b"".join((head, _SIZES.pack(len(_KEY_ID), len(quote)), _KEY_ID, quote))


def _error_response(minor: int, code: int) -> bytes:
    return _HEADER.pack(1, minor, _GET_QUOTE_RESP, _HEAD, code) + _SIZES.pack(0, 0)


def listen(place: str) -> socket.socket:
    """Return a socket that listens at `place`: `vsock:PORT` on any CID, or a Unix socket's path.

    Raises:
        UsageError: If the port is not 1 to 2^32 - 2, or the path is empty or too long.
        BackendError: If the address cannot be bound.
    """
    kind, _, port = place.partition(":")
    vsock = kind == "vsock"
    if vsock and not (re.fullmatch(r"[0-9]{1,10}", port) and 0 < int(port) < (1 << 32) - 1):
        raise UsageError(
            f"{place!r}: must be vsock:PORT, with a port of 1 to 4294967294", reason="wrong_value"
        )
    if not vsock and not 0 < len(os.fsencode(place)) <= 107:
        text = f"{place!r}: the path of a Unix socket must have 1 to 107 bytes"
        raise UsageError(text, reason="wrong_size")
    if vsock:
        return open_listener((socket.VMADDR_CID_ANY, int(port)), place, "quote service")
    return open_listener(place, place, "quote service")


class QuoteService(SocketService):
    """The quote generation service on a listening socket, which it closes.

    Args:
        listener: A stream socket of any family, see `listen`.
        quoter: The quoting enclave.
        faults: The armed faults; only those of the QGS apply. None: no faults.
    """

    def __init__(
        self, listener: socket.socket, quoter: ReportQuoter, faults: Faults | None = None
    ) -> None:
        super().__init__(listener, "quote service")
        self._quoter = quoter
        self._faults = faults or Faults()

    def _respond(self, client: socket.socket) -> bytes:
        head = receive(client, _LENGTH.size)
        if head[0] == _TD_REPORT:  # above the limit of frames: a bare report
            reply = self._quoter.quote(head + receive(client, _REPORT_SIZE - len(head)))
        else:
            (length,) = _LENGTH.unpack(head)
            if length > _LONGEST:
                text = f"request: must have at most {_LONGEST} bytes, not {length}"
                raise FormatError(text, reason="too_large", offset=0)
            reply = answer_request(self._quoter, head + receive(client, length))
        return self._apply_fault(reply)

    def _apply_fault(self, reply: bytes) -> bytes:
        effect = self._faults.effect("qgs")
        if effect == "qgs_closes":
            return b""
        if effect == "qgs_truncates":
            return reply[: len(reply) // 2]
        if effect == "qgs_error":
            failure = _error_response(0, _UNEXPECTED)
            return _LENGTH.pack(len(failure)) + failure
        return reply
