"""Serve a TPM on connected sockets, with the frames of `swtpm socket --fd`, or in this process."""

import socket
from contextlib import suppress
from threading import Lock, Thread
from typing import TYPE_CHECKING, Final, Protocol

from attestkit._system.fifo_lock import FifoLock
from attestkit.backends.simulator.software_tpm.model.tpm_model import LARGEST_FRAME, encode_error
from attestkit.errors import BackendError, UsageError

if TYPE_CHECKING:
    from typing_extensions import Self

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


class TpmStreamServer:
    """Socket pairs with a TPM at their other ends, each served by a thread.

    A context manager; leaving it closes all connections.

    Args:
        tpm: The TPM.
    """

    def __init__(self, tpm: CommandExecutor) -> None:
        self._tpm = tpm
        self._lock = Lock()
        self._closed = False
        self._served: list[tuple[socket.socket, Thread]] = []

    def connect(self) -> socket.socket:
        """Return a new socket to the TPM; the caller closes it.

        Raises:
            UsageError: If the server is closed.
        """
        ours, theirs = socket.socketpair()
        thread = Thread(target=self._serve, args=(ours,), name="software TPM", daemon=True)
        with self._lock:
            if self._closed:
                ours.close()
                theirs.close()
                raise UsageError("software TPM: closed", reason="closed")
            self._served = [one for one in self._served if one[1].is_alive()]
            self._served.append((ours, thread))
            thread.start()
        return theirs

    def _serve(self, connection: socket.socket) -> None:
        # OSError: the other side is gone. BackendError: the TPM is; the client then sees the end.
        with connection, suppress(OSError, BackendError):
            serve_connection(self._tpm, connection)

    def close(self) -> None:
        """Close all connections, and wait for commands in progress."""
        with self._lock:
            self._closed = True
            served, self._served = self._served, []
        for connection, _ in served:
            with suppress(OSError):  # it has ended already
                connection.shutdown(socket.SHUT_RDWR)
        for _, thread in served:
            thread.join()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


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
