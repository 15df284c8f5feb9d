"""Service on a stream socket: a request and a response for each connection."""

import contextlib
import socket
import threading
from pathlib import Path
from select import select
from typing import Final

from attestkit.backends.linux.device_errors import failed
from attestkit.errors import FormatError

_IDLE: Final = 30.0  # seconds, as Intel's quote generation service


def open_listener(address: str | tuple[int, int], name: str, service: str) -> socket.socket:
    """Return a listening stream socket.

    Args:
        address: Path of a Unix socket, or context and port of vsock. A socket that a killed service
            left at the path is replaced; other files are kept.
        name: The address for errors.
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
        """Serve in the background."""
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
        """Process one request, then disconnect."""
        with client, contextlib.suppress(OSError, FormatError):
            client.sendall(self._respond(client))

    def _respond(self, client: socket.socket) -> bytes:
        """Receive a request, and return the response.

        Raises:
            FormatError: If the request is malformed; the client is disconnected then.
        """
        raise NotImplementedError


def receive(client: socket.socket, size: int) -> bytes:
    """Receive exactly `size` bytes.

    Raises:
        FormatError: If the client sends fewer.
    """
    data = b""
    while len(data) < size:
        chunk = client.recv(size - len(data))
        if not chunk:
            text = "request: the client disconnected"
            raise FormatError(text, reason="truncated", offset=len(data))
        data += chunk
    return data
