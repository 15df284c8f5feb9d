"""A fake service manager: a datagram socket that receives sd_notify messages."""

import contextlib
import socket
from pathlib import Path


class FakeServiceManager:
    """A socket at a path, or in the abstract namespace with a leading `@`.

    Attributes:
        address: The value for `$NOTIFY_SOCKET`.
    """

    def __init__(self, address: Path | str) -> None:
        self.address = str(address)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.address.replace("@", "\0", 1))

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def next(self, seconds: float = 60.0) -> str:
        """Return the next message; raise TimeoutError if none arrives."""
        self._socket.settimeout(seconds)
        return self._socket.recv(4096).decode()

    def next_but_status(self, seconds: float = 60.0) -> str:
        """Return the next message other than STATUS=."""
        while (message := self.next(seconds)).startswith("STATUS="):
            pass
        return message

    def fill(self) -> None:
        """Fill the receive queue, so that senders block."""
        with contextlib.suppress(BlockingIOError):
            while True:  # a new sender each time, because each sender's buffer is limited
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                    sender.setblocking(False)
                    sender.connect(self.address.replace("@", "\0", 1))
                    sender.send(b"STATUS=")

    def discard_messages(self) -> None:
        """Discard the received messages."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(4096)
        except BlockingIOError:
            pass
