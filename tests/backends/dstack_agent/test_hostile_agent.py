"""Responses of a malicious agent: limits on time, size and memory."""

import contextlib
import itertools
import json
import socket
import sys
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Final

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
    request_error,
    response,
    scripted_agent,
    wait_for_close,
)
from tests.raising import raises
from tests.runner.cases import every_case


@every_case(
    ("answer", "reason"),
    [
        (b"", "connection_lost"),
        (b"\r\n", "malformed_response"),
        (b"HTTP/1.1 two hundred\r\n\r\n", "malformed_response"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000, "malformed_response"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n", "malformed_response"),
        (b"H" * 1_000_000, "malformed_response"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n" + SECRET.encode(), "truncated"),
        (CHUNKED + b"40\r\n" + SECRET.encode() + b"\r\n", "truncated"),
        (CHUNKED + b"zz\r\n" + SECRET.encode(), "truncated"),
        (CHUNKED + b"-5\r\n" + SECRET.encode(), "malformed_response"),
        (response(SECRET.encode()), "malformed_response"),
        (response(b""), "malformed_response"),
        (response(b'{"key":"' + SECRET.encode() + b'\xff"}'), "malformed_response"),
        (response(b'{"key":"%s","key":1}' % SECRET.encode()), "malformed_response"),
        (response(b'{"key":NaN,"x":"%s"}' % SECRET.encode()), "malformed_response"),
        (response([SECRET]), "malformed_response"),
        (response(b"[" * 1_000_000), "malformed_response"),
        (response(b'{"a":' * 1_000_000 + b"1" + b"}" * 1_000_000), "malformed_response"),
    ],
)
def test_malformed_response_is_rejected(answer: bytes, reason: str) -> None:
    """The reason distinguishes lost connections, truncated and malformed responses.

    `fails` asserts that no byte of the response is in the error: it may be a key.
    """
    error = request_error(answer)
    assert type(error) is BackendError
    assert error.reason == reason


_BODIES_WITH_SECRET: Final[tuple[object, ...]] = (
    SECRET.encode(),
    b'{"error":"%s"' % SECRET.encode(),
    {"key": SECRET},
    {"key": SECRET, "error": "exhausted"},
    {"error": {"key": SECRET}},
    {"error": {"key": SECRET, "description": "exhausted"}},
    {"error": [SECRET]},
    {"description": SECRET},
    [SECRET],
    SECRET,
)


@every_case(
    ("method", "status", "body"),
    [
        *itertools.product(("GetKey", "v1/GetKey"), (400, 403, 500, 503), _BODIES_WITH_SECRET),
        *itertools.product(("GetKey", "EmitEvent"), (201, 302), ({"error": SECRET}, SECRET)),
    ],
)
def test_error_status_shows_its_message_only(method: str, status: int, body: object) -> None:
    """Beside any status the body may be a key: only the member for the error's message is shown."""
    error = request_error(response(body, status), method)
    assert ("exhausted" in str(error)) == ("exhausted" in repr(body))


def test_deeply_nested_json_is_rejected_at_any_recursion_limit() -> None:
    """A library may have raised the interpreter's limit."""
    limit = sys.getrecursionlimit()
    try:
        sys.setrecursionlimit(1_000_000)
        assert request_error(response(b"[" * 1_000_000)).reason == "malformed_response"
    finally:
        sys.setrecursionlimit(limit)


def send_endlessly(head: bytes, piece: bytes) -> Callable[[socket.socket, Request], None]:
    """Return an agent that sends data without an end."""

    def answer(connection: socket.socket, _: Request) -> None:
        connection.sendall(head)
        while True:  # until the client closes
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
def test_endless_response_is_limited_to_32_mib(head: bytes, piece: bytes) -> None:
    """It takes at most twice that memory, whatever size it announces."""
    with scripted_agent(send_endlessly(head, piece)) as agent:
        tracemalloc.start()
        try:
            with raises(BackendError, "too_large", path=agent.path, part="32 MiB"):
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
def test_endless_header_section_is_limited_to_256_kib(head: bytes, piece: bytes) -> None:
    """Reading lines is slow, so the limit is lower than that of a body."""
    with (
        scripted_agent(send_endlessly(head, piece)) as agent,
        raises(BackendError, "too_large", path=agent.path, part="256 KiB"),
    ):
        AgentClient(agent.path).call("Info")


def test_response_below_the_limit_is_accepted() -> None:
    """Just under 32 MiB, with the header section."""
    body = json.dumps({"log": "x" * ((32 << 20) - 200)}).encode()
    with scripted_agent(response(body)) as agent:
        assert len(AgentClient(agent.path).post("GetQuote").text) == len(body)


@every_case(
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
def test_slow_response_ends_at_the_deadline(head: bytes, piece: bytes) -> None:
    """The timeout covers the complete call."""
    gone = threading.Event()

    def drip(connection: socket.socket, request: Request) -> None:
        connection.sendall(head)
        if not piece:
            wait_for_close(connection, request)
        while not gone.wait(0.01):
            connection.sendall(piece)

    with scripted_agent(drip) as agent:
        started = time.monotonic()
        try:
            with raises(BackendBusyError, "timed_out"):
                AgentClient(agent.path, timeout=0.2).call("Info")
        finally:
            gone.set()
        assert time.monotonic() - started < PATIENCE / 2


@pytest.fixture(scope="module")
def any_agent() -> Iterator[ScriptedAgent]:
    """Run one agent for all examples."""
    with scripted_agent(b"") as agent:
        yield agent


@given(st.binary(max_size=300))
def test_any_bytes_give_response_or_attestkit_error(any_agent: ScriptedAgent, data: bytes) -> None:
    """Arbitrary bytes never raise another exception."""
    for head in (b"", CHUNKED, b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"):
        any_agent.answers[""] = head + data
        with contextlib.suppress(AttestKitError):
            AgentClient(any_agent.path).call("Info")
