"""Clients that send requests in sequence and record the outcome of each.

A request is accepted if it was sent on a connection without a `Connection: close` response. An
accepted request without a complete response is lost.
"""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator
from http.client import HTTPException
from typing import Final

from tests.serve.client import Connection

PATIENCE: Final = 60


class LoadClient(threading.Thread):
    """A client with a persistent connection, or a new one for each request.

    Attributes:
        counts: Number of requests `answered`, `lost` and, at connect(), `turned away`.
        losses: Causes of the lost requests.
        after: Number of requests answered after `stopping` was set.
    """

    def __init__(self, endpoint: str, *, keep: bool, stopping: threading.Event) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.losses: list[str] = []
        self.after = 0
        self._enough = False
        self._keep = keep
        self._stopping = stopping
        self._endpoint = endpoint
        self._target = "/prpc/Worker.Version"
        if endpoint.endswith("tappd.sock"):
            self._target = "/prpc/Tappd.Version"
        if endpoint.endswith("dstack.sock"):
            self._target = "/GetKey"

    def run(self) -> None:
        """Send requests until connections are refused or stop() is called."""
        while not self._enough:
            with contextlib.closing(Connection(self._endpoint)) as connection:
                try:
                    connection.connect()
                except (ConnectionRefusedError, FileNotFoundError):
                    self.counts["turned away"] += 1
                    return
                while self._exchange(connection) and not self._enough:
                    pass

    def stop(self) -> None:
        """Stop after the current request."""
        self._enough = True

    def _exchange(self, connection: Connection) -> bool:
        """Send a request and read its response; return whether the connection persists."""
        stopping = self._stopping.is_set()
        headers = {"Content-Type": "application/json"}
        if not self._keep:
            headers["Connection"] = "close"
        try:
            answer = connection.send_request("POST", self._target, b'{"path": "a"}', headers)
            assert answer.status == 200, answer
        except (OSError, HTTPException, AssertionError) as error:
            self.counts["lost"] += 1
            self.losses.append(f"{self._endpoint} keep={self._keep}: {error!r}")
            return False
        self.counts["answered"] += 1
        self.after += stopping
        return answer.headers.get("connection") != "close"


@contextlib.contextmanager
def run_clients(
    endpoints: list[str], each: int = 2
) -> Iterator[tuple[list[LoadClient], threading.Event]]:
    """Run clients at every endpoint, `each` with persistent and with new connections."""
    stopping = threading.Event()
    clients = [
        LoadClient(endpoint, keep=keep, stopping=stopping)
        for endpoint in endpoints
        for keep in (True, False)
        for _ in range(each)
    ]
    for client in clients:
        client.start()
    try:
        yield clients, stopping
    finally:
        for client in clients:
            client.join(PATIENCE)
