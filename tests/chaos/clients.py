"""Clients that keep asking a server while something goes wrong, and a ledger of what they saw.

Each method has a client of its own, on a connection that it keeps as long as it lives. What a
client may hold the server to is checked at once: a quote must be explained by its log, and the log
must have every event that was acknowledged before the quote was asked for.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, final

from attestkit import EventLog, Quote
from tests.keeping import Keeping
from tests.serve.client import Answer, Connection
from tests.serve.server import Server

__all__ = ["Clients", "Ledger", "Seen"]

PATIENCE: Final = 150.0  # seconds for an answer; a server may be stopped for a minute
_PAUSE: Final = 0.05  # between two requests of a client
_BEGINS: Final = "chaos-"  # the names of our events


class Seen(NamedTuple):
    """One request: when, in seconds of `time.monotonic`, and what came of it."""

    method: str
    begin: float
    end: float
    status: int  # 0: no answer
    text: str  # what the error says


class Ledger:
    """What the clients saw and what they were promised; any thread may write."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.acknowledged: list[str] = []
        self.refused: dict[str, str] = {}  # by event what the client was told
        self.wrong: list[str] = []  # answers of status 200 that were not true

    def outcome(self, begin: float, end: float) -> list[Seen]:
        """Return the requests that were under way between two moments."""
        return [seen for seen in self.seen[:] if seen.end > begin and seen.begin < end]

    def lost(self, names: list[str]) -> set[str]:
        """Return the events that were acknowledged and are not in a log of these names."""
        return set(self.acknowledged) - set(names)

    def check_events(self, names: list[str]) -> int:
        """Hold what a log has to what was promised; return how many events it has besides.

        What it has not, `lost` tells.

        Args:
            names: Of all events that the app emitted.

        Raises:
            AssertionError: An acknowledged event is there twice or out of order; or an event is
                there of which the client was told that nothing was changed.
        """
        ours = [name for name in names if name.startswith(_BEGINS)]
        assert len(ours) == len(set(ours)), "an event is in the log twice"
        promised, lost = set(self.acknowledged), self.lost(names)
        found = [name for name in ours if name in promised]
        kept = [name for name in self.acknowledged if name not in lost]
        assert found == kept, "an acknowledged event is out of order"
        more = [name for name in ours if name not in promised]
        for name in more:
            told = self.refused[name]
            assert "nothing was changed" not in told, f"{name} is in the log, but: {told}"
        return len(more)


class _Patient(Connection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(PATIENCE)


class _Client(threading.Thread):
    """Asks for one thing again and again."""

    def __init__(self, what: str, place: str, ask: Callable[[_Patient], Seen]) -> None:
        super().__init__(name=f"chaos-{what}", daemon=True)
        self.ending = threading.Event()
        self.failure: BaseException | None = None
        self._place = place
        self._ask = ask

    def run(self) -> None:
        connection = _Patient(self._place)
        with Keeping() as kept:  # it is raised by whoever ends us
            while not self.ending.is_set():
                if self._ask(connection).status == 0:
                    connection.close()
                    connection = _Patient(self._place)
                self.ending.wait(_PAUSE)
        self.failure = kept.error
        connection.close()


@final
class Clients:
    """The clients of one server, a thread for each thing that is asked for.

    Args:
        server: Whom they ask.
        without: What is not asked for.
        get: More that is asked for at the external listener: path by name.
    """

    def __init__(
        self, server: Server, *, without: tuple[str, ...] = (), get: dict[str, str] | None = None
    ) -> None:
        self.ledger = Ledger()
        self._number = 0
        self._first: dict[str, object] = {}
        asks: dict[str, tuple[str, Callable[[_Patient], Seen]]] = {
            "GetQuote": (server.dstack, self._get_quote),
            "EmitEvent": (server.dstack, self._emit),
            "GetKey": (server.dstack, lambda c: self._same(c, "GetKey", {"path": "a"}, "key")),
            "Info": (server.dstack, lambda c: self._same(c, "Info", {}, "app_id")),
        }
        for name, path in {"/metrics": "/metrics", **(get or {})}.items():
            asks[name] = (server.url, partial(self._get, name=name, path=path))
        self.names = tuple(name for name in asks if name not in without)
        self._threads = [_Client(name, *asks[name]) for name in self.names]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        for thread in self._threads:
            thread.ending.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        for thread in self._threads:
            if thread.failure is not None:
                raise thread.failure
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def wait_until(
        self, what: str, enough: Callable[[list[Seen]], bool], begin: float, patience: float = 60
    ) -> float:
        """Wait until the requests that began after a moment are as wanted; return when it was."""
        end = time.monotonic() + patience
        while not enough([seen for seen in self.ledger.seen[:] if seen.begin >= begin]):
            for thread in self._threads:
                if thread.failure is not None:
                    raise thread.failure
            assert time.monotonic() < end, f"{what} did not come within {patience:g} s"
            time.sleep(0.01)
        return time.monotonic()

    def answered(self, found: list[Seen], least: int = 1) -> bool:
        """Tell whether everything that is asked for was answered well, as often as that."""
        good = [seen.method for seen in found if seen.status == 200]
        return all(good.count(name) >= least for name in self.names)

    # -- what they ask -------------------------------------------------------------------------

    def _note(self, name: str, send: Callable[[], Answer]) -> tuple[Seen, Answer | None]:
        begin = time.monotonic()
        answer = None
        try:
            answer = send()
            status, text = answer.status, "" if answer.status == 200 else _error(answer)
        except (OSError, http.client.HTTPException) as error:
            status, text = 0, f"no answer: {type(error).__name__}"
        return Seen(name, begin, time.monotonic(), status, text), answer

    def _keep(self, seen: Seen) -> Seen:
        self.ledger.seen.append(seen)
        return seen

    def _emit(self, connection: _Patient) -> Seen:
        self._number += 1
        event = f"{_BEGINS}{self._number}"
        message = {"event": event, "payload": f"{self._number:08x}"}
        seen, _ = self._note("EmitEvent", lambda: connection.call("EmitEvent", message))
        if seen.status == 200:
            self.ledger.acknowledged.append(event)
        else:
            self.ledger.refused[event] = seen.text
        return self._keep(seen)

    def _get_quote(self, connection: _Patient) -> Seen:
        promised = self.ledger.acknowledged[:]
        data = {"report_data": "77" * 64}
        seen, answer = self._note("GetQuote", lambda: connection.call("GetQuote", data))
        if answer is not None and seen.status == 200:
            names = set(app_events(answer.json()))
            if missing := [name for name in promised if name not in names]:
                self.ledger.wrong.append(f"a quote without {missing[:3]}, which were acknowledged")
        return self._keep(seen)

    def _same(self, connection: _Patient, name: str, message: object, field: str) -> Seen:
        seen, answer = self._note(name, lambda: connection.call(name, message))
        if answer is not None and seen.status == 200:
            value = answer.json()[field]
            if value != self._first.setdefault(name, value):
                self.ledger.wrong.append(f"{name} has another {field}")
        return self._keep(seen)

    def _get(self, connection: _Patient, name: str, path: str) -> Seen:
        return self._keep(self._note(name, lambda: connection.send_request("GET", path))[0])


def app_events(answer: Any) -> list[str]:
    """Return the names of what was emitted, of a quote and the log that must explain it."""
    log = EventLog.from_json(answer["event_log"])
    quote = Quote.parse(bytes.fromhex(answer["quote"]))
    log.check(quote)
    assert quote.report_data == b"\x77" * 64
    found = [event.name for event in log.runtime]
    return found[found.index("system-ready") + 1 :]


def _error(answer: Answer) -> str:
    try:
        return str(answer.json()["error"])
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        return answer.body[:200].decode(errors="replace").strip()
