"""A server on the loopback interface that answers like Azure's metadata service (IMDS)."""

import json
import socket
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from tests.collateral.http_server import CreateServer, Server, create_response


class SentRequest(NamedTuple):
    """A request as the server received it."""

    line: str
    headers: dict[str, str]
    body: bytes


Answer = Callable[[SentRequest], bytes]


def json_response(**members: Any) -> bytes:
    """Return a response of status 200 with a JSON object."""
    return create_response(json.dumps(members).encode(), "Content-Type: application/json")


def status_response(status: int, *headers: str) -> bytes:
    """Return a response without a body."""
    lines = [f"HTTP/1.1 {status} X", *headers, "Content-Length: 0", "", ""]
    return "\r\n".join(lines).encode()


class ImdsServer:
    """Answers requests by a function, or by given responses in order, and records them."""

    def __init__(self, create_server: CreateServer, answer: Answer | Sequence[bytes]) -> None:
        self.requests: list[SentRequest] = []
        self._answer = answer
        self._server: Server = create_server(self._respond)
        self.address = ("127.0.0.1", int(self._server.url.rpartition(":")[2]))

    def _respond(self, connection: socket.socket) -> None:
        head, _, body = self._server.requests[-1].partition(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        headers = {
            name.lower(): value.strip() for name, _, value in (f.partition(":") for f in fields)
        }
        while len(body) < int(headers.get("content-length", 0)):
            body += connection.recv(65536)
        request = SentRequest(line, headers, body)
        self.requests.append(request)
        if callable(self._answer):
            connection.sendall(self._answer(request))
        else:
            connection.sendall(self._answer[len(self.requests) - 1])
