"""An HTTP client for unix sockets and URLs."""

import http.client
import json
import socket
from contextlib import closing
from typing import Any, NamedTuple

from attestkit import EventLog, Quote


class Answer(NamedTuple):
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)


def connect(endpoint: str, timeout: float | None = 60) -> socket.socket:
    """Connect to a socket's path or the host of a URL."""
    if endpoint.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout)
        try:
            connection.connect(endpoint)
        except OSError:
            connection.close()
            raise
        return connection
    host, _, port = endpoint.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout)


class Connection(http.client.HTTPConnection):
    """An HTTP connection to a socket's path or a URL."""

    def __init__(self, endpoint: str) -> None:
        self._endpoint = endpoint
        host = "localhost" if endpoint.startswith("/") else endpoint.removeprefix("http://")
        super().__init__(host, timeout=60)

    def connect(self) -> None:
        """Connect to the socket or the URL's host."""
        self.sock = connect(self._endpoint, self.timeout)

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
    with closing(Connection(endpoint)) as connection:
        return connection.call(method, message)


def read_runtime_events(endpoint: str) -> list[tuple[str, str]]:
    """Return name and payload of the runtime events of a new quote, whose log must replay."""
    answer = call(endpoint, "GetQuote").json()
    log = EventLog.from_json(answer["event_log"])
    log.check(Quote.parse(bytes.fromhex(answer["quote"])))
    return [(event.name, event.payload.hex()) for event in log.runtime]


def get(endpoint: str, target: str, headers: dict[str, str] | None = None) -> Answer:
    """Send one GET request over a new connection."""
    with closing(Connection(endpoint)) as connection:
        return connection.send_request("GET", target, None, headers)
