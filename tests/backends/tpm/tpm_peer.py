"""The other end of a transport: a peer that answers commands with given frames."""

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final

from attestkit.backends.tpm.client import TpmClient
from attestkit.backends.tpm.frames import HEADER_SIZE
from attestkit.backends.tpm.transports import StreamTransport, TpmTransport

if TYPE_CHECKING:
    from typing_extensions import Self

CLOSE: Final = b""
"""In place of an answer: the peer closes the connection."""


class AnsweringTpm:
    """A peer that reads a command and sends the next answer, as bytes or in several pieces."""

    def __init__(self, answers: Iterable[bytes | list[bytes]]) -> None:
        ours, self._theirs = socket.socketpair()
        self.transport = StreamTransport(ours, "peer")
        self.commands: list[bytes] = []
        self._answers = list(answers)
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self) -> None:
        # A client that closes with bytes unread resets the connection.
        with self._theirs as connection, suppress(ConnectionError):
            for answer in self._answers:
                command = _receive(connection, HEADER_SIZE)
                if len(command) < HEADER_SIZE:
                    return
                size = int.from_bytes(command[2:6], "big")
                self.commands.append(command + _receive(connection, size - HEADER_SIZE))
                if answer == CLOSE:
                    return
                for piece in [answer] if isinstance(answer, bytes) else answer:
                    connection.sendall(piece)
            connection.recv(1)  # until the client closes

    def __enter__(self) -> "Self":
        self._thread.start()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _at: TracebackType | None,
    ) -> None:
        self.transport.close()
        self._thread.join(10)
        assert not self._thread.is_alive()


def _receive(connection: socket.socket, size: int) -> bytes:
    """Receive `size` bytes, or fewer at the end."""
    found = b""
    while len(found) < size and (piece := connection.recv(size - len(found))):
        found += piece
    return found


class RecordingTransport:
    """A transport that keeps the responses of another one."""

    def __init__(self, transport: TpmTransport) -> None:
        self._transport = transport
        self.path = transport.path
        self.lock = transport.lock
        self.responses: list[bytes] = []

    def exchange(self, command: bytes, seconds: float) -> bytes:
        """Forward a command, and keep its response."""
        self.responses.append(self._transport.exchange(command, seconds))
        return self.responses[-1]

    def close(self) -> None:
        """Close the other transport."""
        self._transport.close()


def exchange_with(tpm: TpmClient, call: Callable[[TpmClient], object]) -> list[bytes]:
    """Return the frames with which a TPM answers the commands of a call."""
    recorder = RecordingTransport(tpm.transport)
    call(TpmClient(recorder))
    return recorder.responses
