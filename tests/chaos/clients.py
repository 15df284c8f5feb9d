"""Clients that send requests during a fault, and a ledger of the responses.

Each method has a client of its own, on a persistent connection. Promises are checked at once: a
quote must match its log, and the log must have every event acknowledged before the request.
"""

import http.client
import json
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple, final

from attestkit import EventLog, Quote
from tests.concurrency.keeping import Keeping
from tests.serve.client import Answer, Connection
from tests.serve.server import Server

TIMEOUT: Final = 150.0  # s for a response; a server may be stopped for a minute
_PAUSE: Final = 0.05  # s between two requests of a client
_BEGINS: Final = "chaos-"  # prefix of the names of events


class RequestOutcome(NamedTuple):
    """One request with its times, in seconds of `time.monotonic`, and its outcome."""

    method: str
    begin: float
    end: float
    status: int  # 0: no response
    text: str  # text of the error


class Ledger:
    """Responses and promises to the clients; any thread may write."""

    def __init__(self) -> None:
        self.seen: list[RequestOutcome] = []
        self.acknowledged: list[str] = []
        self.refused: dict[str, str] = {}  # error text by event
        self.wrong: list[str] = []  # incorrect responses of status 200

    def outcome(self, begin: float, end: float) -> list[RequestOutcome]:
        """Return the requests that overlap an interval."""
        return [seen for seen in self.seen[:] if seen.end > begin and seen.begin < end]

    def lost(self, names: list[str]) -> set[str]:
        """Return the acknowledged events that are missing from a log of these names."""
        return set(self.acknowledged) - set(names)

    def check_events(self, names: list[str]) -> int:
        """Check a log against the promises; return its number of other events.

        Missing events are given by `lost`.

        Args:
            names: Of all events that the app emitted.

        Raises:
            AssertionError: If an acknowledged event is duplicated or out of order, an event is in
                the log although its error said that nothing was changed, or is missing although
                its error said that the register was extended.
        """
        ours = [name for name in names if name.startswith(_BEGINS)]
        assert len(ours) == len(set(ours)), "an event is in the log twice"
        promised, lost = set(self.acknowledged), self.lost(names)
        found = [name for name in ours if name in promised]
        kept = [name for name in self.acknowledged if name not in lost]
        assert found == kept, "an acknowledged event is out of order"
        more = [name for name in ours if name not in promised]
        for name in more:
            text = self.refused[name]
            assert "nothing was changed" not in text, f"{name} is in the log, but: {text}"
        for name, text in self.refused.items():
            if "; RTMR3 was extended" in text:
                assert name in more, f"{name} is missing in the log, but: {text}"
        return len(more)


class _SlowConnection(Connection):
    def connect(self) -> None:
        super().connect()
        self.sock.settimeout(TIMEOUT)


class _Client(threading.Thread):
    """Repeats one request."""

    def __init__(
        self, what: str, place: str, ask: Callable[[_SlowConnection], RequestOutcome]
    ) -> None:
        super().__init__(name=f"chaos-{what}", daemon=True)
        self.ending = threading.Event()
        self.failure: BaseException | None = None
        self._place = place
        self._ask = ask

    def run(self) -> None:
        connection = _SlowConnection(self._place)
        with Keeping() as kept:  # raised by the thread that stops the client
            while not self.ending.is_set():
                if self._ask(connection).status == 0:
                    connection.close()
                    connection = _SlowConnection(self._place)
                self.ending.wait(_PAUSE)
        self.failure = kept.error
        connection.close()


@final
class Clients:
    """The clients of one server, a thread for each kind of request.

    Args:
        server: The server.
        without: Requests to omit.
        get: Additional GET requests to the external listener: path by name.
    """

    def __init__(
        self, server: Server, *, without: tuple[str, ...] = (), get: dict[str, str] | None = None
    ) -> None:
        self.ledger = Ledger()
        self._number = 0
        self._first: dict[str, object] = {}
        asks: dict[str, tuple[str, Callable[[_SlowConnection], RequestOutcome]]] = {
            "GetQuote": (server.dstack, self._get_quote),
            "EmitEvent": (server.dstack, self._emit),
            "GetKey": (
                server.dstack,
                lambda c: self._get_constant(c, "GetKey", {"path": "a"}, "key"),
            ),
            "Info": (server.dstack, lambda c: self._get_constant(c, "Info", {}, "app_id")),
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
            thread.join(TIMEOUT)
        for thread in self._threads:
            if thread.failure is not None:
                raise thread.failure
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"

    def wait_until(
        self,
        what: str,
        enough: Callable[[list[RequestOutcome]], bool],
        begin: float,
        patience: float = 60,
    ) -> float:
        """Wait until the requests since `begin` meet a condition; return the time."""
        end = time.monotonic() + patience
        while not enough([seen for seen in self.ledger.seen[:] if seen.begin >= begin]):
            for thread in self._threads:
                if thread.failure is not None:
                    raise thread.failure
            assert time.monotonic() < end, f"{what} did not come within {patience:g} s"
            time.sleep(0.01)
        return time.monotonic()

    def answered(self, found: list[RequestOutcome], least: int = 1) -> bool:
        """Return whether every kind of request was answered at least `least` times."""
        good = [seen.method for seen in found if seen.status == 200]
        return all(good.count(name) >= least for name in self.names)

    # -- requests ------------------------------------------------------------------------------

    def _send_and_time(
        self, name: str, send: Callable[[], Answer]
    ) -> tuple[RequestOutcome, Answer | None]:
        begin = time.monotonic()
        answer = None
        try:
            answer = send()
            status, text = answer.status, "" if answer.status == 200 else _error(answer)
        except (OSError, http.client.HTTPException) as error:
            status, text = 0, f"no answer: {type(error).__name__}"
        return RequestOutcome(name, begin, time.monotonic(), status, text), answer

    def _record(self, seen: RequestOutcome) -> RequestOutcome:
        self.ledger.seen.append(seen)
        return seen

    def _emit(self, connection: _SlowConnection) -> RequestOutcome:
        self._number += 1
        event = f"{_BEGINS}{self._number}"
        message = {"event": event, "payload": f"{self._number:08x}"}
        seen, _ = self._send_and_time("EmitEvent", lambda: connection.call("EmitEvent", message))
        if seen.status == 200:
            self.ledger.acknowledged.append(event)
        else:
            self.ledger.refused[event] = seen.text
        return self._record(seen)

    def _get_quote(self, connection: _SlowConnection) -> RequestOutcome:
        promised = self.ledger.acknowledged[:]
        data = {"report_data": "77" * 64}
        seen, answer = self._send_and_time("GetQuote", lambda: connection.call("GetQuote", data))
        if answer is not None and seen.status == 200:
            names = set(app_events(answer.json()))
            if missing := [name for name in promised if name not in names]:
                self.ledger.wrong.append(f"a quote without {missing[:3]}, which were acknowledged")
        return self._record(seen)

    def _get_constant(
        self, connection: _SlowConnection, name: str, message: object, field: str
    ) -> RequestOutcome:
        seen, answer = self._send_and_time(name, lambda: connection.call(name, message))
        if answer is not None and seen.status == 200:
            value = answer.json()[field]
            if value != self._first.setdefault(name, value):
                self.ledger.wrong.append(f"{name} has another {field}")
        return self._record(seen)

    def _get(self, connection: _SlowConnection, name: str, path: str) -> RequestOutcome:
        return self._record(
            self._send_and_time(name, lambda: connection.send_request("GET", path))[0]
        )


def app_events(answer: Any) -> list[str]:
    """Return the names of emitted events in a quote's log, which must match the quote."""
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
