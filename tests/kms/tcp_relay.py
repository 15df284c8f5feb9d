"""A TCP relay in front of a KMS, which records all bytes, and may change them or go elsewhere."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator

_SECONDS = 20.0

Alter = Callable[[int, bytes], bytes]
"""Function that returns the bytes to pass on, of the number of a connection and the server's."""


class TcpRelay:
    """Passes on the bytes of each connection to a port, which may change while it runs."""

    def __init__(self, port: int, alter: Alter | None = None) -> None:
        self.ports = [port]  # of each connection; the last one is that of all later ones, too
        self.connections = 0
        self.recorded = bytearray()  # of both directions
        self._alter = alter
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        """Stop, and wait for the threads."""
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(_SECONDS)
        for sock in self._sockets:
            sock.close()

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            number = self.connections
            self.connections += 1
            port = self.ports[min(number, len(self.ports) - 1)]
            server = socket.create_connection(("127.0.0.1", port), _SECONDS)
            client.settimeout(_SECONDS)
            self._sockets += (client, server)
            self._start(self._pass, client, server, None)
            self._start(self._pass, server, client, number)

    def _pass(self, source: socket.socket, sink: socket.socket, number: int | None) -> None:
        """Pass on one direction; `number` is that of a connection whose server sends."""
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.recorded += data
                if number is not None and self._alter is not None:
                    data = self._alter(number, data)
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def relay_to(url: str, alter: Alter | None = None) -> Iterator[TcpRelay]:
    """Run a relay to the KMS with this URL."""
    relay = TcpRelay(int(url.rpartition(":")[2]), alter)
    try:
        yield relay
    finally:
        relay.close()
