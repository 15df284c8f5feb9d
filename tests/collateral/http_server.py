"""An HTTP or HTTPS server whose responses a test determines byte for byte."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Final

from attestkit.collateral.responses import Getter

OK: Final = b"HTTP/1.1 200 OK\r\n"
TIMEOUT: Final = 30.0  # s, of the tests themselves


def create_response(body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a response of status 200."""
    size = len(body) if length is None else length
    return (
        OK
        + "".join(f"{line}\r\n" for line in headers).encode()
        + (f"Content-Length: {size}\r\n\r\n".encode() + body)
    )


Respond = Callable[[socket.socket], None]


class Server:
    """A server that answers each connection with given bytes, or by a function."""

    def __init__(self, respond: Respond | bytes, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self._respond = respond
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with contextlib.suppress(OSError), connection:
                connection.settimeout(TIMEOUT)
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                request = b""
                while b"\r\n\r\n" not in request:
                    part = connection.recv(65536)
                    if not part:
                        break
                    request += part
                if request == b"stop\r\n\r\n":
                    return
                self.requests.append(request)
                with connection:
                    if isinstance(self._respond, bytes):
                        connection.sendall(self._respond)
                    else:
                        self._respond(connection)

    def close(self) -> None:
        """Stop the thread."""
        self._context = None
        with socket.create_connection(self._listener.getsockname()) as connection:
            connection.sendall(b"stop\r\n\r\n")
        self._thread.join(TIMEOUT)
        self._listener.close()
        assert not self._thread.is_alive()


CreateServer = Callable[..., Server]


def create_pccs_server(create_server: CreateServer, service: Getter) -> Server:
    """Return a server that responds like `service`."""

    def respond(connection: socket.socket) -> None:
        target = server.requests[-1].split()[1].decode()
        status, headers, body = service(f"http://x{target}")
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        connection.sendall(head.encode() + body)

    server: Server = create_server(respond)
    return server
