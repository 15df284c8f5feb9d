"""What comes in one packet is answered in turns, so that nobody else waits for all of it."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import uvloop
from uvicorn.server import ServerState

from attestkit.serve import listener_apps
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.http.listener_state import Shared
from attestkit.serve.http.protocol import HttpProtocol, ListenerConfig
from attestkit.serve.services.context import Guest
from tests.untyped import untyped

REQUEST = b"GET /Version HTTP/1.1\r\n\r\n"
SLOW = b"GET /docs HTTP/1.1\r\n\r\n"
OLD = b"GET /docs HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
PACKET = 1 << 18  # bytes that the loop reads at a time


class Transport:
    """Takes everything at once; counts answers."""

    def __init__(self) -> None:
        self.answers = 0
        self.written = b""
        self.paused = False
        self.aborted = False
        self.at_end = False

    def get_extra_info(self, _name: str, default: object = None) -> object:
        """Know nothing."""
        return default

    def write(self, data: bytes) -> None:
        """Count what is written, and keep its begin."""
        assert not self.at_end
        self.answers += data.count(b"HTTP/1.1 200 OK")
        self.written += data[: max(0, 4096 - len(self.written))]

    def writelines(self, pieces: list[bytes]) -> None:
        """Count what is written."""
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        """Never close."""
        return self.aborted

    def get_write_buffer_size(self) -> int:
        """Hold nothing."""
        return 0

    def pause_reading(self) -> None:
        """Take note."""
        self.paused = True

    def resume_reading(self) -> None:
        """Take note."""
        self.paused = False

    def abort(self) -> None:
        """Take note."""
        self.aborted = True

    close = abort

    def write_eof(self) -> None:
        """Take no more."""
        self.at_end = True


def connection(guest: Guest) -> tuple[HttpProtocol, Transport]:
    """Return a connection to dstack.sock, and the transport below it."""
    shared = Shared.of("dstack", Limits(), Traffic(), None)
    config = ListenerConfig(listener_apps.dstack_app(guest), shared)
    config.load()
    protocol, transport = HttpProtocol(config, ServerState(), {}), Transport()
    protocol.connection_made(untyped(transport))
    return protocol, transport


async def _until(done: Callable[[], bool]) -> int:
    """Let the loop turn until something is done; return how often it has."""
    turns = 0
    while not done():
        await asyncio.sleep(0)
        turns += 1
    return turns


def run(test: Callable[[], Any]) -> None:
    """Run a coroutine in the loop that the server has."""
    uvloop.run(asyncio.wait_for(test(), 60))


def test_a_packet_of_requests_is_answered_in_turns(guest: Guest) -> None:
    """Each turn has some of the answers, and until the last one nothing more is read."""

    async def test() -> None:
        protocol, transport = connection(guest)
        count = PACKET // len(REQUEST)
        protocol.data_received(REQUEST * count)
        assert transport.paused
        most, before = 0, 0
        turns = 0
        while transport.answers < count:
            await asyncio.sleep(0)
            most, before = max(most, transport.answers - before), transport.answers
            turns += 1
        assert turns > count / 300
        assert most < 300  # those of a turn, and of the slice in which it ended
        await _until(lambda: not transport.paused)

    run(test)


def test_many_small_packets_are_as_one(guest: Guest) -> None:
    """The loop may read one socket many times in a row; what it brings then waits too."""

    async def test() -> None:
        protocol, transport = connection(guest)
        for _ in range(1000):
            protocol.data_received(REQUEST * 3)
        assert transport.answers < 300
        await _until(lambda: transport.answers == 3000)

    run(test)


def test_requests_behind_a_slow_one_stay_as_they_came(guest: Guest) -> None:
    """They become objects when it is their turn: memory is that of the packet."""

    async def test() -> None:
        protocol, transport = connection(guest)
        count = PACKET // len(REQUEST)
        protocol.data_received(SLOW + REQUEST * count)
        assert len(protocol.pipeline) < 300
        assert transport.paused
        await _until(lambda: transport.answers == count + 1)
        assert not protocol.pipeline

    run(test)


def test_a_client_that_ignores_all_pauses_is_dropped(guest: Guest) -> None:
    """Nothing is kept without end, whatever the transport does."""

    async def test() -> None:
        protocol, transport = connection(guest)
        protocol.data_received(SLOW)
        for _ in range(10):
            protocol.data_received(REQUEST * (PACKET // len(REQUEST)))
        assert transport.aborted

    run(test)


@pytest.mark.parametrize(
    "rest", [b"GET /Ver", b"POST /Sign HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", b"519"]
)
def test_the_end_of_a_part_of_a_request_leaves_the_whole_ones(guest: Guest, rest: bytes) -> None:
    """They are answered, then the connection ends; of the part there is nothing."""

    async def test() -> None:
        protocol, transport = connection(guest)
        protocol.data_received(SLOW + REQUEST + rest)
        assert protocol.eof_received()
        await _until(lambda: transport.aborted)
        assert transport.answers == 2
        await asyncio.gather(*protocol.tasks)

    run(test)


@pytest.mark.parametrize(
    "rest", [b"GET /Ver", b"POST /docs HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
)
def test_the_end_of_a_part_alone_ends_the_connection(guest: Guest, rest: bytes) -> None:
    """There is nothing to wait for."""

    async def test() -> None:
        protocol, _ = connection(guest)
        protocol.data_received(rest)
        assert not protocol.eof_received()
        await asyncio.gather(*protocol.tasks)

    run(test)


@pytest.mark.parametrize(
    ("sent", "has_body"),
    [
        (b"HEAD / HTTP/0.9\r\n\r\n", False),
        (b"HEAD / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", False),
        (b"HEAD / HTTP/1.1\r\nX: " + b"x" * 40_000, False),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 40_000, True),
        (b"HEAD /Version HTTP/1.1\r\n\r\n", False),
    ],
)
def test_what_is_refused_to_head_has_no_body(guest: Guest, sent: bytes, *, has_body: bool) -> None:
    """Its length is told, as that of the answer to GET (RFC 9110, 9.3.2)."""

    async def test() -> None:
        protocol, transport = connection(guest)
        protocol.data_received(sent)
        await _until(lambda: bool(transport.written))
        head, _, body = transport.written.partition(b"\r\n\r\n")
        assert bool(body) == has_body
        assert b"content-length: 0\r\n" not in head

    run(test)


def test_nonsense_behind_a_request_for_a_head_is_refused_with_a_body(guest: Guest) -> None:
    """It is no such request itself."""

    async def test() -> None:
        protocol, transport = connection(guest)
        protocol.data_received(b"HEAD /Version HTTP/1.1\r\n\r\n")
        await asyncio.gather(*protocol.tasks)
        protocol.data_received(b"519")
        assert b"this is not HTTP" in transport.written

    run(test)


def test_nothing_is_written_behind_the_last_answer(
    guest: Guest, caplog: pytest.LogCaptureFixture
) -> None:
    """That of HTTP/1.0, where another request came at once, and nonsense behind it."""

    async def test() -> None:
        protocol, transport = connection(guest)
        protocol.data_received(OLD + SLOW + b"GET /Version ;TTP/1.1\r\n")
        await _until(lambda: transport.at_end and not protocol.tasks)
        assert (transport.answers, transport.aborted) == (1, False)
        assert b"\r\nconnection: close\r\n" in transport.written
        protocol.connection_lost(None)

    run(test)
    assert not caplog.records
