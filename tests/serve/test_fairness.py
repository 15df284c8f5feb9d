"""One client that asks without a pause does not keep another from its answer."""

import contextlib
import socket
import threading
import time
from urllib.parse import urlsplit

from tests.serve.client import Connection
from tests.serve.server import running_server

SECONDS = 2.0
PATIENCE = 0.5  # seconds; without turns the slowest answer took two, or never came


def flood(address: tuple[str, int], end: float) -> None:
    """Send requests as fast as they go, and take the answers."""
    request = b"GET /prpc/Worker.Version HTTP/1.1\r\nHost: x\r\n\r\n" * 2000
    with socket.create_connection(address, 60) as client, contextlib.suppress(OSError):
        taker = threading.Thread(target=take, args=(client,))
        taker.start()
        while time.monotonic() < end:
            client.sendall(request)
        client.shutdown(socket.SHUT_RDWR)
        taker.join()


def take(client: socket.socket) -> None:
    """Read until there is no more."""
    with contextlib.suppress(OSError):
        while client.recv(1 << 20):
            pass


def test_a_flood_leaves_room_for_others() -> None:
    """While one connection of the TCP side floods, the unix side is served at once."""
    with running_server() as server:
        url = urlsplit(server.url)
        assert url.hostname is not None
        assert url.port is not None
        end = time.monotonic() + SECONDS
        flooder = threading.Thread(target=flood, args=((url.hostname, url.port), end))
        flooder.start()
        connection = Connection(server.dstack)
        waits = []
        while time.monotonic() < end:
            begin = time.monotonic()
            assert connection.call("GetKey", {"path": "a"}).status == 200
            waits.append(time.monotonic() - begin)
        connection.close()
        flooder.join()
    assert max(waits) < PATIENCE, (max(waits), len(waits))
