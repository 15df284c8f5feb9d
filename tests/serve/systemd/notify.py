"""A service manager's ear: a datagram socket that notes what it is told."""

import contextlib
import socket
from pathlib import Path


class Manager:
    """Listens at a path, or under an abstract name behind an `@`.

    Attributes:
        address: What `$NOTIFY_SOCKET` is to say.
    """

    def __init__(self, address: Path | str) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0", 1))

    def close(self) -> None:
        """Hear no more."""
        self._socket.close()

    def next(self, seconds: float = 60.0) -> str:
        """Return the next message; TimeoutError if none comes."""
        self._socket.settimeout(seconds)
        return self._socket.recv(4096).decode()

    def next_but_status(self, seconds: float = 60.0) -> str:
        """Return the next message that is not for people."""
        while (message := self.next(seconds)).startswith("STATUS="):
            pass
        return message

    def fill(self) -> None:
        """Be told so much that nobody can tell more."""
        with contextlib.suppress(BlockingIOError):
            while True:  # a new socket each time, so that it is not the teller who has no more room
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as teller:
                    teller.setblocking(False)
                    teller.connect(self.address.replace("@", "\0", 1))
                    teller.send(b"STATUS=")

    def forget(self) -> None:
        """Drop what was said so far."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(4096)
        except BlockingIOError:
            pass
