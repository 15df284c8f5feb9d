"""A client of the host's listener over vsock loopback."""

import json
import socket
from functools import cache
from typing import Any, Final

LOOPBACK: Final = 1  # VMADDR_CID_LOCAL
_SECONDS: Final = 60.0  # for an emulated machine


@cache
def has_loopback(port: int) -> bool:
    """Return whether this kernel reaches its own vsock sockets, which it may lack or refuse."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as probe:
        probe.settimeout(0.5)  # without loopback the connection may never be refused
        try:
            probe.connect((LOOPBACK, port))
        except OSError:
            return False
    return True


def request(port: int, target: str, verb: str = "GET") -> tuple[int, Any]:
    """Send one request; return the status and the JSON of the response."""
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:
        client.settimeout(_SECONDS)
        client.connect((LOOPBACK, port))
        head = f"{verb} {target} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n"
        client.sendall(head.encode())
        answer = client.makefile("rb").read()
    return int(answer[9:12]), json.loads(answer.partition(b"\r\n\r\n")[2])


def check_guest_api_over_vsock(port: int) -> None:
    """Send requests to a server on vsock."""
    status, info = request(port, "/api/Info")
    assert (status, len(info["app_id"])) == (200, 40)
    assert request(port, "/api/SysInfo")[0] == 200
    assert request(port, "/api/NetworkInfo")[0] == 200
    assert request(port, "/api/GetKey")[0] == 404
    assert request(port, "/GetKey")[0] == 404
    assert request(port, "/api/Shutdown", "POST")[0] == 403  # from a process of the guest
    with socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM) as client:  # kept alive, in pieces
        client.settimeout(_SECONDS)
        client.connect((LOOPBACK, port))
        for _ in range(3):
            for piece in (b"GET /api/GpuInfo HT", b"TP/1.1\r\nHost: guest\r\n\r\n"):
                client.sendall(piece)
            assert client.recv(65536).startswith(b"HTTP/1.1 200")
