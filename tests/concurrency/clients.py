"""Clients of a server that send without waiting, and the history of their calls."""

import http.client
import json
import socket
from typing import Any, NamedTuple

from attestkit import EventLog, Quote
from tests.concurrency.linearizable import NEVER, Call, Log, boot, emit, explain, saw


class _Pending(NamedTuple):
    """A request in flight."""

    method: str
    begin: int
    message: dict[str, str]


class History:
    """The calls of all clients, in logical time."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._now = 0

    def tick(self) -> int:
        """Advance and return the logical time."""
        self._now += 1
        return self._now

    def emitted(self, begin: int, name: str, *, done: bool | None) -> None:
        """Record that an event was emitted (True), rejected (False), or unknown (None)."""
        self.calls.append(emit(begin, self.tick(), name, done=done))

    def left_behind(self, begin: int, name: str) -> None:
        """Record that the client did not wait for the outcome of an event."""
        self.calls.append(emit(begin, NEVER, name, done=None))

    def saw(self, begin: int, names: Log) -> None:
        """Record an event log that a quote proved."""
        self.calls.append(saw(begin, self.tick(), names))

    def booted(self, begin: int, names: Log) -> None:
        """Record a reboot, after which the log has these events."""
        self.calls.append(boot(begin, self.tick(), names))

    def check(self, log: Log) -> None:
        """Assert that some order explains all calls, starting with `log`."""
        calls = sorted(self.calls, key=lambda call: call.begin)
        text = "\n".join(f"  {call}" for call in calls)
        assert explain(calls, log) is not None, f"no order of these explains what was seen:\n{text}"


class Client:
    """One connection, with at most one request in flight."""

    def __init__(self, path: str, history: History) -> None:
        self._path = path
        self._history = history
        self._pending: _Pending | None = None
        self._socket: socket.socket | None = None

    @property
    def waiting(self) -> bool:
        """Whether a request is in flight."""
        return self._pending is not None

    def send(self, method: str, **message: str) -> None:
        """Send a request without waiting for the response."""
        assert self._pending is None
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(60)
            self._socket.connect(self._path)
        body = json.dumps(message).encode()
        head = f"POST /{method} HTTP/1.1\r\nHost: td\r\nContent-Type: application/json\r\n"
        self._pending = _Pending(method, self._history.tick(), message)
        self._socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def receive(self) -> None:
        """Receive the response, and record it."""
        pending, self._pending = self._pending, None
        assert pending is not None
        assert self._socket is not None
        answer = http.client.HTTPResponse(self._socket)
        answer.begin()
        body = answer.read()
        if pending.method == "EmitEvent":
            done = answer.status == 200
            self._history.emitted(pending.begin, pending.message["event"], done=done)
            return
        if answer.status == 200:  # otherwise it was rejected, and proves nothing
            self._history.saw(pending.begin, _get_proved_events(pending, json.loads(body)))

    def lose(self) -> None:
        """Record that the server was killed: the request in flight may have taken effect."""
        pending, self._pending = self._pending, None
        if pending is not None and pending.method == "EmitEvent":
            self._history.emitted(pending.begin, pending.message["event"], done=None)
        self.close()

    def hang_up(self) -> None:
        """Close without receiving the response."""
        pending, self._pending = self._pending, None
        if pending is not None and pending.method == "EmitEvent":
            self._history.left_behind(pending.begin, pending.message["event"])
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _get_proved_events(pending: _Pending, answer: dict[str, Any]) -> Log:
    """Return the log's events, which must match the registers of the same response."""
    if pending.method == "Info":
        shown = json.loads(answer["tcb_info"])
        log = EventLog.from_json(json.dumps(shown["event_log"]))
        assert log.replay()[3].hex() == shown["rtmr3"]
    else:
        log = EventLog.from_json(answer["event_log"])
        quote = Quote.parse(bytes.fromhex(answer["quote"]))
        log.check(quote)
        expected = bytes.fromhex(pending.message["report_data"])
        assert quote.report_data == expected.ljust(64, b"\0")
    return tuple(event.name for event in log.runtime)
