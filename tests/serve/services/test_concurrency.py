"""Quote and log belong together, however many clients emit events at the same time."""

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


class Seen(NamedTuple):
    """What one log showed: how many runtime events, and which was the last."""

    events: int
    last: str


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server to be worked hard."""
    with running_server("--state-dir", "state") as server:
        yield server
        server.check_log()


def names(connection: Connection) -> list[str]:
    """Return the runtime events of a quote's log, which must replay to the quote's registers."""
    answer = connection.call("GetQuote", {"report_data": "00"}).json()
    log = EventLog.from_json(answer["event_log"])
    log.check(Quote.parse(bytes.fromhex(answer["quote"])))
    return [event.name for event in log.runtime]


def fresh_names(server: Server) -> list[str]:
    """Do the same over a connection of its own."""
    connection = Connection(server.dstack)
    try:
        return names(connection)
    finally:
        connection.close()


def work(server: Server, client: int, end: float, emitted: list[str], seen: list[Seen]) -> None:
    """Emit and quote in turn until `end`; what this client emitted is in each of its quotes."""
    connection = Connection(server.dstack)
    mine: list[str] = []
    while time.monotonic() < end:
        name = f"client-{client}-event-{len(mine)}"
        answer = connection.call("EmitEvent", {"event": name, "payload": f"{client:02x}"})
        assert (answer.status, answer.body) == (200, b"null")
        mine.append(name)
        for _ in range(2):
            found = names(connection)
            assert [n for n in found if n.startswith(f"client-{client}-")] == mine
            seen.append(Seen(len(found), found[-1]))
    emitted += mine
    connection.close()


@pytest.mark.slow
def test_every_quote_matches_its_log(server: Server) -> None:
    """32 clients, 10 s: every log replays, every event is there once, history never changes."""
    booted = fresh_names(server)
    assert booted[-1] == RESERVED
    emitted: list[str] = []
    seen: list[Seen] = []
    failures: list[BaseException] = []
    end = time.monotonic() + SECONDS

    def client(number: int) -> None:
        with Keeping(failures):
            work(server, number, end, emitted, seen)

    threads = [threading.Thread(target=client, args=(number,)) for number in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(emitted) >= CLIENTS
    history = fresh_names(server)
    assert sorted(history[len(booted) :]) == sorted(emitted)
    assert all(history[events - 1] == last for events, last in seen)
