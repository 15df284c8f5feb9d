"""Whatever an agent answers, its client ends: in time, in little memory, with our errors only."""

import contextlib
import itertools
import json
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attestkit.backends.dstack_agent.client import AgentClient
from attestkit.errors import AttestKitError, BackendBusyError, BackendError
from tests.backends.dstack_agent.scripted_agent import (
    CHUNKED,
    PATIENCE,
    SECRET,
    Request,
    ScriptedAgent,
    fails,
    response,
    scripted_agent,
    until_it_goes,
)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"", "closed the connection without an answer"),
        (b"\r\n", "not HTTP"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "not HTTP"),
        (b"HTTP/9.9 200 OK\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n", "not HTTP"),
        (b"H" * 1_000_000, "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + SECRET.encode(), "broke off"),
        (CHUNKED + b"40\r\n" + SECRET.encode() + b"\r\n", "broke off"),
        (CHUNKED + b"80\r\n" + SECRET.encode(), "broke off"),
        (CHUNKED + b"zz\r\n" + SECRET.encode(), "broke off"),
        (CHUNKED + b"-5\r\n" + SECRET.encode(), "not HTTP"),
        (response(SECRET.encode()), "not well-formed JSON"),
        (response(b""), "not well-formed JSON"),
        (response(b'{"key":"' + SECRET.encode() + b'\xff"}'), "not UTF-8"),
        (response(b'{"key":"' + SECRET.encode() + b'"'), "not well-formed JSON"),
        (response(b'{"key":"%s","key":1}' % SECRET.encode()), "not well-formed JSON"),
        (response(b'{"key":NaN,"x":"%s"}' % SECRET.encode()), "not well-formed JSON"),
        (response([SECRET]), "not a JSON object"),
        (response(None), "not a JSON object"),
        (response(b"[" * 1_000_000), "deeper than 200"),
        (response(b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000), "deeper than 200"),
    ],
)
def test_a_malformed_answer_is_refused(answer: bytes, text: str) -> None:
    """By what is wrong with it, without a byte of it: it may be a key."""
    error = fails(answer)
    assert type(error) is BackendError
    assert text in str(error)


def test_deep_json_is_refused_whatever_the_limit() -> None:
    """Also where a library has raised the interpreter's recursion limit."""
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(1_000_000)
        assert "deeper than 200" in str(fails(response(b"[" * 1_000_000)))
    finally:
        sys.setrecursionlimit(limit)


def endless(head: bytes, piece: bytes) -> Callable[[socket.socket, Request], None]:
    """Return an agent that does not stop talking."""

    def answer(connection: socket.socket, _: Request) -> None:
        connection.sendall(head)
        while True:  # until the client goes away
            connection.sendall(piece)

    return answer


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65536),
        (CHUNKED, b"10000\r\n" + b"x" * 65536 + b"\r\n"),
        (CHUNKED + b"-1\r\n", b"x" * 65536),
        (CHUNKED + b"7fffffffffff\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 33554433\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999999999999\r\n\r\n", b"x" * 65536),
        (b"HTTP/1.1 500 Oh\r\n\r\n", b"x" * 65536),
    ],
    ids=["no length", "chunks", "minus one", "one chunk", "just over", "huge", "error"],
)
def test_an_endless_answer_ends_at_32_mib(head: bytes, piece: bytes) -> None:
    """And takes no more memory than twice that, whatever it promises."""
    with scripted_agent(endless(head, piece)) as agent:
        tracemalloc.start()
        try:
            with pytest.raises(BackendError, match="more than 32 MiB"):
                AgentClient(agent.path).call("Info")
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert peak < 80 << 20


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
        (b"", b"HTTP/1.1 100 Continue\r\n" + b"X: y\r\n" * 90 + b"\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 60_000 + b"\r\n"),
    ],
    ids=["continue", "continue with headers", "long headers"],
)
def test_an_endless_head_ends_at_256_kib(head: bytes, piece: bytes) -> None:
    """Reading lines is slow, so a head has less room than a body."""
    with (
        scripted_agent(endless(head, piece)) as agent,
        pytest.raises(BackendError, match="more than 256 KiB before a body"),
    ):
        AgentClient(agent.path).call("Info")


def test_an_answer_of_the_longest_kind_is_read() -> None:
    """Just under 32 MiB, head and all."""
    body = json.dumps({"log": "x" * ((32 << 20) - 200)}).encode()
    with scripted_agent(response(body)) as agent:
        assert len(AgentClient(agent.path).post("GetQuote").text) == len(body)


@pytest.mark.parametrize(
    ("head", "piece"),
    [
        (b"", b""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
        (CHUNKED, b"1\r\nx\r\n"),
        (CHUNKED + b"1", b"0"),
    ],
    ids=["nothing", "body", "headers", "chunks", "chunk size"],
)
def test_a_slow_answer_ends_with_the_time_of_the_call(head: bytes, piece: bytes) -> None:
    """The time is that of the whole call, so a byte now and then does not keep it open."""
    gone = threading.Event()

    def drip(connection: socket.socket, request: Request) -> None:
        connection.sendall(head)
        if not piece:
            until_it_goes(connection, request)
        while not gone.wait(0.01):
            connection.sendall(piece)

    with scripted_agent(drip) as agent:
        started = time.monotonic()
        try:
            with pytest.raises(BackendBusyError, match=r"did not answer Info within 0\.2 s"):
                AgentClient(agent.path, timeout=0.2).call("Info")
        finally:
            gone.set()
        assert time.monotonic() - started < PATIENCE / 2


def test_the_clock_is_the_callers() -> None:
    """What is left of the time is counted by the clock that was handed in."""
    # The start, the connection, head and body of the request; then it is over.
    times = itertools.chain([0.0, 1.0, 2.0, 3.0], itertools.repeat(10.0))
    with scripted_agent(response({})) as agent:
        client = AgentClient(agent.path, timeout=10, clock=lambda: next(times))
        with pytest.raises(BackendBusyError, match="within 10 s"):
            client.call("Info")


@pytest.fixture(scope="module")
def any_agent() -> Iterator[ScriptedAgent]:
    """An agent that all examples share."""
    with scripted_agent(b"") as agent:
        yield agent


@given(st.binary(max_size=300))
def test_any_bytes_are_an_answer_or_an_error_of_ours(any_agent: ScriptedAgent, data: bytes) -> None:
    """Nothing foreign gets out."""
    for head in (b"", CHUNKED, b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"):
        any_agent.answers[""] = head + data
        with contextlib.suppress(AttestKitError):
            AgentClient(any_agent.path).call("Info")
