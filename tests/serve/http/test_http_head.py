"""Where a head ends is found however it is cut, and nothing behind it is changed."""

import asyncio
import re
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from uvicorn.server import ServerState

from attestkit.serve.config.limits import Limits
from attestkit.serve.counters import Traffic
from attestkit.serve.http.listener_state import Shared
from attestkit.serve.http.protocol import HttpProtocol, ListenerConfig
from attestkit.serve.http.request_checks import KEPT, head_size, without_upgrade
from tests.serve.http.test_protocol import Transport
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


def asked_of(pieces: list[bytes]) -> tuple[Asked, bytes]:
    """Return what an application is asked for, with bodies, and the start of what is answered."""
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
        config = ListenerConfig(untyped(app), Shared.of("echo", Limits(), Traffic(), None))
        config.load()
        transport = Transport()
        protocol = HttpProtocol(config, ServerState(), {}, _loop=asyncio.get_running_loop())
        protocol.connection_made(untyped(transport))
        for piece in pieces:
            protocol.data_received(piece)
            for _ in range(20):  # turns of the loop: the application never waits
                await asyncio.sleep(0)
        protocol.connection_lost(None)
        return transport.written

    return asked, asyncio.run(play())


@pytest.mark.parametrize("body", BODIES)
def test_a_request_is_one_request_wherever_it_is_cut(body: bytes) -> None:
    """Its body, too, is what was sent; what looks like a header there is none."""
    whole = PLAIN % len(body) + body
    for cut in range(len(whole) + 1):
        asked, answered = asked_of([whole[:cut], whole[cut:]])
        assert asked == [("POST", "/a", body)], f"cut at {cut}"
        assert len(re.findall(rb"HTTP/1.1 [0-9]", answered)) == 1


@pytest.mark.parametrize("body", BODIES)
def test_a_wish_for_another_protocol_changes_no_body(body: bytes) -> None:
    """Where the wish itself is cut the request is refused: its body would be lost."""
    whole, refused = UPGRADING % len(body) + body, 0
    for cut in range(len(whole) + 1):
        asked, answered = asked_of([whole[:cut], whole[cut:]])
        refused += answered.startswith(b"HTTP/1.1 400 ")
        assert asked in ([("POST", "/a", body)], []), f"cut at {cut}"
        assert len(re.findall(rb"HTTP/1.1 [0-9]", answered)) == 1
        assert bool(asked) is answered.startswith(b"HTTP/1.1 200 ")
    assert 0 < refused < len(b"\r\nUpgrade:")


@pytest.mark.parametrize("before", range(4090, 4101))
def test_a_request_is_one_request_where_the_server_cuts_it(before: int) -> None:
    """What comes in one packet is parsed in slices of 4096 bytes; the head ends around there."""
    head = PLAIN % len(BODIES[0])
    padding = b"X-Padding: " + b"a" * (before - len(head) - len("X-Padding: \r\n")) + b"\r\n"
    padded = head[:-2] + padding + b"\r\n"
    assert len(padded) == before
    asked, _ = asked_of([padded + BODIES[0]])
    assert asked == [("POST", "/a", BODIES[0])]


def test_a_second_request_is_found_in_the_same_way() -> None:
    """Its head may begin behind the first one's body, in one piece with it."""
    first, second = PLAIN % len(BODIES[0]) + BODIES[0], PLAIN % len(BODIES[1]) + BODIES[1]
    wanted = [("POST", "/a", BODIES[0]), ("POST", "/a", BODIES[1])]
    for cut, size in product(range(len(first), len(first + second)), (2, 60)):
        both = first + second
        pieces = [both[: cut - size], both[cut - size : cut], both[cut:]]
        assert asked_of(pieces)[0] == wanted, f"cut at {cut - size} and {cut}"


@pytest.mark.parametrize("size", [100, 2000, 4095, 4800, 9000])
def test_requests_in_one_packet_are_all_answered(size: int) -> None:
    """Wherever the server cuts them: a body that waits is read when its turn has come."""
    body = b"b" * size
    asked, answered = asked_of([(PLAIN % size + body) * 3])
    assert asked == [("POST", "/a", body)] * 3
    assert len(re.findall(rb"HTTP/1\.1 200", answered)) == 3


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"a", b"\r\n\r"]), max_size=12), st.data())
def test_the_end_of_a_head_in_any_pieces(parts: list[bytes], data: st.DataObject) -> None:
    """It is where the first blank line ends, in whatever pieces it comes."""
    whole = b"G" + b"".join(parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    found, tail = 0, b""
    for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True):
        piece = whole[start:end]
        size = head_size(tail, piece)
        found += size
        if b"\r\n\r\n" in tail + piece:
            break  # as the parser tells
        assert size == len(piece)
        tail = (tail + piece)[-KEPT:]
    at = whole.find(b"\r\n\r\n")
    assert found == (len(whole) if at < 0 else at + 4)


def test_a_name_is_replaced_by_one_of_its_length() -> None:
    """So that no byte of a request moves."""
    head = b"GET / HTTP/1.1\r\nUPGRADE: h2c\r\nupgrade: x\r\nA: upgrade:\r\n\r\n"
    changed = without_upgrade(head)
    assert len(changed) == len(head)
    assert changed.lower().count(b"upgrade") == 1
