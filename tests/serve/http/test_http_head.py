"""Finding the end of a request's head, however the bytes are split."""

import asyncio
import re
from itertools import product
from typing import Any

import pytest
from uvicorn.server import ServerState

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.http.listener_state import ListenerConfig, ListenerState
from attestkit.serve.http.protocol import HttpProtocol
from tests.runner.cases import every_case
from tests.serve.http.test_protocol import RecordingTransport
from tests.untyped import untyped

PLAIN = b"POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
UPGRADING = b"POST /a HTTP/1.1\r\nUpgrade: h2c\r\nConnection: Upgrade\r\nContent-Length: %d\r\n\r\n"
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
BODIES = (
    b"x" + b"\r\nupgrade:" * 5 + b"\r\n\r\n" + HIDDEN,
    b"\r\nUpgrade: h2c\r\n\r\n" + HIDDEN,
    b"\n\r\nupgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    b"",
)
Asked = list[tuple[str, str, bytes]]


def parse_requests(pieces: list[bytes]) -> tuple[Asked, bytes]:
    """Return the requests that the application receives, and the bytes of the responses."""
    asked: Asked = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            assert message["type"] == "http.request"
            body, more = body + message["body"], message["more_body"]
        asked.append((scope["method"], scope["path"], body))
        headers = [(b"content-length", b"0")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async def play() -> bytes:
        config = ListenerConfig(
            untyped(app), ListenerState.of("echo", Limits(), Traffic(), None), HttpProtocol
        )
        config.load()
        transport = RecordingTransport()
        protocol = HttpProtocol(config, ServerState(), {}, _loop=asyncio.get_running_loop())
        protocol.connection_made(untyped(transport))
        for piece in pieces:
            protocol.data_received(piece)
            for _ in range(20):  # iterations of the loop; the application never waits
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        return transport.written

    return asked, asyncio.run(play())


@pytest.mark.parametrize("body", BODIES)
def test_split_request_is_one_request(body: bytes) -> None:
    """A request split at any byte is one request, and its body is unchanged."""
    whole = PLAIN % len(body) + body
    for cut in range(len(whole) + 1):
        asked, answered = parse_requests([whole[:cut], whole[cut:]])
        assert asked == [("POST", "/a", body)], f"cut at {cut}"
        assert len(re.findall(rb"HTTP/1.1 [0-9]", answered)) == 1


@pytest.mark.parametrize("body", BODIES)
def test_split_upgrade_request_keeps_body(body: bytes) -> None:
    """An upgrade request is refused only if it is split within the Upgrade header."""
    whole, refused = UPGRADING % len(body) + body, 0
    for cut in range(len(whole) + 1):
        asked, answered = parse_requests([whole[:cut], whole[cut:]])
        refused += answered.startswith(b"HTTP/1.1 400 ")
        assert asked in ([("POST", "/a", body)], []), f"cut at {cut}"
        assert len(re.findall(rb"HTTP/1.1 [0-9]", answered)) == 1
        assert bool(asked) is answered.startswith(b"HTTP/1.1 200 ")
    assert 0 < refused < len(b"\r\nUpgrade:")


@every_case("before", range(4090, 4101))
def test_request_larger_than_slice_is_one_request(before: int) -> None:
    """A head that ends near the parser's slice of 4096 bytes is found."""
    head = PLAIN % len(BODIES[0])
    padding = b"X-Padding: " + b"a" * (before - len(head) - len("X-Padding: \r\n")) + b"\r\n"
    padded = head[:-2] + padding + b"\r\n"
    assert len(padded) == before
    asked, _ = parse_requests([padded + BODIES[0]])
    assert asked == [("POST", "/a", BODIES[0])]


def test_second_request_is_found() -> None:
    """The second request's head is found, even in one piece with the first body."""
    first, second = PLAIN % len(BODIES[0]) + BODIES[0], PLAIN % len(BODIES[1]) + BODIES[1]
    expected = [("POST", "/a", BODIES[0]), ("POST", "/a", BODIES[1])]
    for cut, size in product(range(len(first), len(first + second)), (2, 60)):
        both = first + second
        pieces = [both[: cut - size], both[cut - size : cut], both[cut:]]
        assert parse_requests(pieces)[0] == expected, f"cut at {cut - size} and {cut}"


@every_case("size", [100, 2000, 4095, 4800, 9000])
def test_pipelined_requests_in_one_packet_are_answered(size: int) -> None:
    """All requests in one packet are answered, wherever the server splits it."""
    body = b"b" * size
    asked, answered = parse_requests([(PLAIN % size + body) * 3])
    assert asked == [("POST", "/a", body)] * 3
    assert len(re.findall(rb"HTTP/1\.1 200", answered)) == 3
