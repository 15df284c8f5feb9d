"""Serve a TPM on connected sockets, with the frames of `swtpm socket --fd`, or in this process."""

import socket
from typing import Final, Protocol

from attestkit._system.fifo_lock import FifoLock
from attestkit.backends.simulator.software_tpm.model.tpm_model import LARGEST_FRAME, encode_error
from attestkit.errors import UsageError
from attestkit.tpm.response_codes import RC_COMMAND_SIZE

_HEADER: Final = 10
_COMMAND_SIZE: Final = 0x142


class CommandExecutor(Protocol):
    """A TPM: the model, a swtpm process, or the proxy before it."""

    def execute(self, command: bytes) -> bytes:
        """Return the response to a command.

        Raises:
            BackendError: If the TPM cannot be reached; a model never raises it.
        """
        ...


def serve_connection(tpm: CommandExecutor, connection: socket.socket) -> None:
    """Answer the commands of a connection until the other side or the TPM ends.

    A frame of an invalid size is answered with 0x142 (command size), as by swtpm; after one that
    is too large the connection ends, because its bytes may not follow.
    """
    while True:
        header = _receive(connection, _HEADER)
        if header is None:
            return
        size = int.from_bytes(header[2:6], "big")
        if not _HEADER <= size <= LARGEST_FRAME:
            connection.sendall(encode_error(_COMMAND_SIZE))
            if size < _HEADER:
                continue
            return
        rest = _receive(connection, size - _HEADER)
        if rest is None:
            return
        connection.sendall(tpm.execute(header + rest))


def _receive(connection: socket.socket, size: int) -> bytes | None:
    """Receive exactly `size` bytes; None if the connection ends before."""
    pieces = b""
    while len(pieces) < size:
        piece = connection.recv(size - len(pieces))
        if not piece:
            return None
        pieces += piece
    return pieces


class InProcessTransport:
    """Transport of `attestkit.backends.tpm` to a TPM in this process, without a socket or thread.

    Args:
        tpm: The TPM.
        path: Its name in errors.
    """

    def __init__(self, tpm: CommandExecutor, path: str = "simulated TPM") -> None:
        self.path = path
        self.lock: FifoLock = FifoLock()
        self._tpm = tpm
        self._closed = False

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Return the response to a command; `seconds` has no effect.

        Raises:
            UsageError: If the transport is closed.
        """
        del seconds
        with self.lock:
            if self._closed:
                raise UsageError(f"{self.path}: closed", reason="closed")
            return self._tpm.execute(command)

    def close(self) -> None:
        """Refuse further commands; a second call has no effect."""
        with self.lock:
            self._closed = True
