"""Quote and event log are consistent while many clients emit events."""

import threading
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from attestkit import EventLog, Quote
from tests.keeping import Keeping
from tests.serve.client import Connection
from tests.serve.server import Server, running_server

CLIENTS = 32
SECONDS = 10.0
RESERVED = "system-ready"  # the last event of a boot


class LogState(NamedTuple):
    """The number of runtime events in one log, and the last event."""

    events: int
    last: str


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server with its own state folder."""
    with running_server("--state-dir", "state") as server:
        yield server
        server.check_log()


def read_event_names(connection: Connection) -> list[str]:
    """Return the runtime events in a quote's log, which must replay to the quote."""
    answer = connection.call("GetQuote", {"report_data": "00"}).json()
    log = EventLog.from_json(answer["event_log"])
    log.check(Quote.parse(bytes.fromhex(answer["quote"])))
    return [event.name for event in log.runtime]


def read_event_names_once(server: Server) -> list[str]:
    """Return them over a new connection."""
    connection = Connection(server.dstack)
    try:
        return read_event_names(connection)
    finally:
        connection.close()


def emit_and_quote(
    server: Server, client: int, end: float, emitted: list[str], states: list[LogState]
) -> None:
    """Emit and quote alternately until `end`; each quote has all events of this client."""
    connection = Connection(server.dstack)
    own_events: list[str] = []
    while time.monotonic() < end:
        name = f"client-{client}-event-{len(own_events)}"
        answer = connection.call("EmitEvent", {"event": name, "payload": f"{client:02x}"})
        assert (answer.status, answer.body) == (200, b"null")
        own_events.append(name)
        for _ in range(2):
            found = read_event_names(connection)
            assert [n for n in found if n.startswith(f"client-{client}-")] == own_events
            states.append(LogState(len(found), found[-1]))
    emitted += own_events
    connection.close()


@pytest.mark.slow
def test_concurrent_quotes_match_their_logs(server: Server) -> None:
    """With 32 clients for 10 s, every log replays and every event occurs once."""
    booted = read_event_names_once(server)
    assert booted[-1] == RESERVED
    emitted: list[str] = []
    states: list[LogState] = []
    failures: list[BaseException] = []
    end = time.monotonic() + SECONDS

    def client(number: int) -> None:
        with Keeping(failures):
            emit_and_quote(server, number, end, emitted, states)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(emitted) >= CLIENTS
    history = read_event_names_once(server)
    assert sorted(history[len(booted) :]) == sorted(emitted)
    assert all(history[events - 1] == last for events, last in states)
