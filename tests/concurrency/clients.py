"""Clients of a server that send without waiting, and what all of them saw as one history."""

import http.client
import json
import socket
from typing import Any, NamedTuple

from attestkit import EventLog, Quote
from tests.concurrency.linearizable import NEVER, Call, Log, boot, emit, explain, saw, unexplained

__all__ = ["Client", "History"]


class _Asked(NamedTuple):
    """A request in flight."""

    method: str
    begin: int
    message: dict[str, str]


class History:
    """The calls of all clients, in a time that is counted and not measured."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self._now = 0

    def tick(self) -> int:
        """Return the time, which goes on."""
        self._now += 1
        return self._now

    def emitted(self, begin: int, name: str, *, done: bool | None) -> None:
        """Write down that an event was emitted, refused, or may have been either."""
        self.calls.append(emit(begin, self.tick(), name, done=done))

    def left_behind(self, begin: int, name: str) -> None:
        """Write down that nobody waits any more for what became of an event."""
        self.calls.append(emit(begin, NEVER, name, done=None))

    def saw(self, begin: int, names: Log) -> None:
        """Write down a log that a quote proved."""
        self.calls.append(saw(begin, self.tick(), names))

    def booted(self, begin: int, names: Log) -> None:
        """Write down a reboot, after which the log has these."""
        self.calls.append(boot(begin, self.tick(), names))

    def check(self, log: Log) -> None:
        """Assert that some order explains all calls, from `log` on."""
        if explain(self.calls, log) is not None:
            return
        wrong = unexplained(self.calls, log)
        told = "\n".join(f"  {call}" for call in sorted(wrong, key=lambda call: call.begin))
        assert not wrong, f"no order of these explains what was seen:\n{told}"


class Client:
    """One connection, with at most one request in flight."""

    def __init__(self, path: str, history: History) -> None:
        self._path = path
        self._history = history
        self._asked: _Asked | None = None
        self._socket: socket.socket | None = None

    @property
    def waiting(self) -> bool:
        """Whether a request is in flight."""
        return self._asked is not None

    def send(self, method: str, **message: str) -> None:
        """Send a request and do not wait for its answer."""
        assert self._asked is None
        if self._socket is None:
            self._socket = socket.socket(socket.AF_UNIX)
            self._socket.settimeout(60)
            self._socket.connect(self._path)
        body = json.dumps(message).encode()
        head = f"POST /{method} HTTP/1.1\r\nHost: td\r\nContent-Type: application/json\r\n"
        self._asked = _Asked(method, self._history.tick(), message)
        self._socket.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)

    def receive(self) -> None:
        """Wait for the answer, and write it down."""
        asked, self._asked = self._asked, None
        assert asked is not None
        assert self._socket is not None
        answer = http.client.HTTPResponse(self._socket)
        answer.begin()
        body = answer.read()
        if asked.method == "EmitEvent":
            done = answer.status == 200
            self._history.emitted(asked.begin, asked.message["event"], done=done)
            return
        if answer.status == 200:  # else it was refused, and shows nothing
            self._history.saw(asked.begin, _proved(asked, json.loads(body)))

    def lose(self) -> None:
        """Find that the server has been killed: what was in flight is done or not, for good."""
        asked, self._asked = self._asked, None
        if asked is not None and asked.method == "EmitEvent":
            self._history.emitted(asked.begin, asked.message["event"], done=None)
        self.close()

    def hang_up(self) -> None:
        """Go without the answer."""
        asked, self._asked = self._asked, None
        if asked is not None and asked.method == "EmitEvent":
            self._history.left_behind(asked.begin, asked.message["event"])
        self.close()

    def close(self) -> None:
        """Close the connection; the next request makes another."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def _proved(asked: _Asked, answer: dict[str, Any]) -> Log:
    """Return the log's events, which the registers beside it prove."""
    if asked.method == "Info":
        shown = json.loads(answer["tcb_info"])
        log = EventLog.from_json(json.dumps(shown["event_log"]))
        assert log.replay()[3].hex() == shown["rtmr3"]
    else:
        log = EventLog.from_json(answer["event_log"])
        quote = Quote.parse(bytes.fromhex(answer["quote"]))
        log.check(quote)
        wanted = bytes.fromhex(asked.message["report_data"])
        assert quote.report_data == wanted.ljust(64, b"\0")
    return tuple(event.name for event in log.runtime)
