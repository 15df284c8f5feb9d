"""An HTTP client for unix sockets and URLs."""

import http.client
import json
import socket
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


class Connection(http.client.HTTPConnection):
    """An HTTP connection to a socket's path or a URL."""

    def __init__(self, endpoint: str) -> None:
        self._path = endpoint if endpoint.startswith("/") else None
        super().__init__(
            "localhost" if self._path else endpoint.removeprefix("http://"), timeout=60
        )

    def connect(self) -> None:
        """Connect to the socket or the URL's host."""
        if self._path is None:
            super().connect()
        else:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(60)
            self.sock.connect(self._path)

    def call(self, method: str, message: object = None) -> Answer:
        """POST a message as JSON to a method."""
        body = json.dumps({} if message is None else message)
        return self.send_request("POST", f"/{method}", body, {"Content-Type": "application/json"})

    def send_request(
        self,
        verb: str,
        target: str,
        body: str | bytes | None = None,
        headers: dict[str, str] | None = None,
    ) -> Answer:
        """Send a request and read its response."""
        self.request(verb, target, body, headers or {})
        response = self.getresponse()
        found = {name.lower(): value for name, value in response.getheaders()}
        return Answer(response.status, found, response.read())


def call(endpoint: str, method: str, message: object = None) -> Answer:
    """POST one message over a new connection."""
    connection = Connection(endpoint)
    try:
        return connection.call(method, message)
    finally:
        connection.close()
