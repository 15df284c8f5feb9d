"""Requests of one packet are answered in batches, so that other clients are not delayed."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop
from uvicorn.server import ServerState

from attestkit.serve import listener_apps
from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.http.listener_state import ListenerConfig, ListenerState
from attestkit.serve.http.protocol import HttpProtocol
from attestkit.serve.services.context import Guest
from tests.untyped import untyped

REQUEST = b"GET /Version HTTP/1.1\r\n\r\n"
SLOW = b"GET /docs HTTP/1.1\r\n\r\n"
OLD = b"GET /docs HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
LENGTH = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"
PACKET = 1 << 18  # bytes per read of the event loop


class RecordingTransport:
    """A transport that accepts all data and counts responses."""

    def __init__(self) -> None:
        self.answers = 0
        self.written = b""
        self.paused = False
        self.aborted = False
        self.at_end = False

    def get_extra_info(self, _name: str, default: object = None) -> object:
        """Return the default."""
        return default

    def write(self, data: bytes) -> None:
        """Count responses, and keep the beginning."""
        assert not self.at_end
        self.answers += data.count(b"HTTP/1.1 200 OK")
        self.written += data[: max(0, 4096 - len(self.written))]

    def writelines(self, pieces: list[bytes]) -> None:
        """Count responses."""
        self.write(b"".join(pieces))

    def is_closing(self) -> bool:
        """Return False."""
        return self.aborted

    def get_write_buffer_size(self) -> int:
        """Return 0."""
        return 0

    def pause_reading(self) -> None:
        """Record the call."""
        self.paused = True

    def resume_reading(self) -> None:
        """Record the call."""
        self.paused = False

    def abort(self) -> None:
        """Record the call."""
        self.aborted = True

    close = abort

    def write_eof(self) -> None:
        """Record the end of the output."""
        self.at_end = True


def create_connection(guest: Guest) -> tuple[HttpProtocol, RecordingTransport]:
    """Return a connection to dstack.sock and its transport."""
    shared = ListenerState.of("dstack", Limits(), Traffic(), None)
    config = ListenerConfig(listener_apps.dstack_app(guest), shared, HttpProtocol)
    config.load()
    protocol, transport = HttpProtocol(config, ServerState(), {}), RecordingTransport()
    protocol.connection_made(untyped(transport))
    return protocol, transport


async def _until(done: Callable[[], bool]) -> int:
    """Run the loop until a condition holds; return the number of iterations."""
    turns = 0
    while not done():
        await asyncio.sleep(0 if turns < 1000 else 0.001)  # do not spin until a time limit
        turns += 1
    return turns


def run(guest: Guest, test: Callable[[HttpProtocol, RecordingTransport], Awaitable[None]]) -> None:
    """Run a test on a new connection in the server's event loop."""

    async def main() -> None:
        await asyncio.wait_for(test(*create_connection(guest)), 60)

    uvloop.run(main())


def test_packet_of_requests_is_answered_in_batches(guest: Guest) -> None:
    """Each loop iteration answers a batch; reading is paused until the last one."""

    async def test(protocol: HttpProtocol, transport: RecordingTransport) -> None:
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
        assert most < 300  # one batch and the slice in which it ended
        await _until(lambda: not transport.paused)

    run(guest, test)


def test_small_packets_equal_one_large(guest: Guest) -> None:
    """Reads in a row without other events are limited too."""

    async def test(protocol: HttpProtocol, transport: RecordingTransport) -> None:
        for _ in range(1000):
            protocol.data_received(REQUEST * 3)
        assert transport.answers < 300
        await _until(lambda: transport.answers == 3000)

    run(guest, test)


def test_queued_requests_are_not_parsed_early(guest: Guest) -> None:
    """Requests behind a slow one stay bytes, so memory is that of the packet."""

    async def test(protocol: HttpProtocol, transport: RecordingTransport) -> None:
        count = PACKET // len(REQUEST)
        protocol.data_received(SLOW + REQUEST * count)
        assert len(protocol.pipeline) < 300
        assert transport.paused
        await _until(lambda: transport.answers == count + 1)
        assert not protocol.pipeline

    run(guest, test)


@pytest.mark.parametrize("size", [20_000, 70_000])
def test_body_is_parsed_at_once_but_not_requests_behind_it(
    guest: Guest, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A long body is parsed in two slices; the requests behind it in the packet are not."""
    pieces: list[int] = []
    on_body = HttpProtocol.on_body

    def record(protocol: HttpProtocol, body: bytes) -> None:
        pieces.append(len(body))
        on_body(protocol, body)

    monkeypatch.setattr(HttpProtocol, "on_body", record)
    body = b"{}".ljust(size)
    long = b"POST /Version HTTP/1.1\r\n" + LENGTH % size + body

    async def test(protocol: HttpProtocol, transport: RecordingTransport) -> None:
        count = PACKET // len(REQUEST)
        protocol.data_received(SLOW + long + REQUEST * count)
        assert transport.paused
        await _until(lambda: sum(pieces) == size)
        assert len(pieces) == 2
        assert transport.answers + len(protocol.pipeline) < 300
        await _until(lambda: transport.answers == count + 2)

    run(guest, test)


def test_client_that_ignores_pauses_is_dropped(guest: Guest) -> None:
    """The connection is aborted when the buffer exceeds its limit."""

    async def test(protocol: HttpProtocol, transport: RecordingTransport) -> None:
        protocol.data_received(SLOW)
        for _ in range(10):
            protocol.data_received(REQUEST * (PACKET // len(REQUEST)))
        assert transport.aborted

    run(guest, test)


@pytest.mark.parametrize(
    "rest", [b"GET /Ver", b"POST /Sign HTTP/1.1\r\nContent-Length: 9\r\n\r\n{", b"519"]
)
def test_eof_in_partial_request_answers_complete_ones(guest: Guest, rest: bytes) -> None:
    """Complete requests are answered, then the connection ends."""

    async def test(protocol: HttpProtocol, transport: RecordingTransport) -> None:
        protocol.data_received(SLOW + REQUEST + rest)
        assert protocol.eof_received()
        await _until(lambda: transport.aborted)
        assert transport.answers == 2
        await asyncio.gather(*protocol.tasks)

    run(guest, test)


@pytest.mark.parametrize(
    "rest", [b"GET /Ver", b"POST /docs HTTP/1.1\r\nContent-Length: 9\r\n\r\n{"]
)
def test_eof_in_first_request_ends_connection(guest: Guest, rest: bytes) -> None:
    """The connection ends at once."""

    async def test(protocol: HttpProtocol, _: RecordingTransport) -> None:
        protocol.data_received(rest)
        assert not protocol.eof_received()
        await asyncio.gather(*protocol.tasks)

    run(guest, test)


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
def test_refused_head_request_has_no_body(guest: Guest, sent: bytes, *, has_body: bool) -> None:
    """A refusal of HEAD has the length but no body (RFC 9110, 9.3.2)."""

    async def test(protocol: HttpProtocol, transport: RecordingTransport) -> None:
        protocol.data_received(sent)
        await _until(lambda: bool(transport.written))
        head, _, body = transport.written.partition(b"\r\n\r\n")
        assert bool(body) == has_body
        assert b"content-length: 0\r\n" not in head

    run(guest, test)


def test_malformed_request_after_head_has_body(guest: Guest) -> None:
    """The refusal has a body, because it does not belong to the HEAD request."""

    async def test(protocol: HttpProtocol, transport: RecordingTransport) -> None:
        protocol.data_received(b"HEAD /Version HTTP/1.1\r\n\r\n")
        await asyncio.gather(*protocol.tasks)
        protocol.data_received(b"519")
        assert b"malformed HTTP" in transport.written

    run(guest, test)


def test_nothing_follows_last_response(guest: Guest, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing follows the response to HTTP/1.0, whatever else was received."""

    async def test(protocol: HttpProtocol, transport: RecordingTransport) -> None:
        protocol.data_received(OLD + SLOW + b"GET /Version ;TTP/1.1\r\n")
        await _until(lambda: transport.at_end and not protocol.tasks)
        assert (transport.answers, transport.aborted) == (1, False)
        assert b"\r\nconnection: close\r\n" in transport.written
        protocol.connection_lost(None)

    run(guest, test)
    assert not caplog.records
