"""What we take from uvicorn beyond what it documents is there, and works as we think it does.

`HttpProtocol`, `Cycle` and the listeners stand on its internals. Where a release has moved one of
them, this says which; and the least release that pyproject.toml allows is the first to have all.
"""

import asyncio
import inspect
import re
import socket
from collections import deque
from importlib.metadata import version
from typing import Any

import pytest
import uvicorn
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from tests.serve.server import PATIENCE, ROOT, running_server

METHODS = {  # that we call, or that uvicorn calls and we have our own of
    HttpToolsProtocol: {
        *("_start_asgi_task", "connection_lost", "connection_made", "data_received"),
        *("eof_received", "on_body", "on_header", "on_headers_complete", "on_message_begin"),
        *("on_message_complete", "on_response_complete", "on_url", "pause_writing"),
        *("resume_writing",),
    },
    RequestResponseCycle: {"receive", "run_asgi", "send"},
    FlowControl: {"drain", "pause_reading", "resume_reading"},
    uvicorn.Server: {"capture_signals", "main_loop", "on_tick", "serve", "shutdown"},
}
OF_CONNECTION = {
    *("app", "client", "connections", "cycle", "expect_100_continue", "flow", "headers", "loop"),
    *("parser", "pipeline", "scope", "server_state", "transport", "url"),
}
OF_CYCLE = {
    *("default_headers", "disconnected", "flow", "keep_alive", "message_event", "more_body"),
    *("on_response", "response_complete", "response_started", "scope", "transport"),
    *("waiting_for_100_continue",),
}
OF_STATE = {"connections", "default_headers", "tasks", "total_requests"}
OF_CONFIG = {
    *("access_log", "factory", "http", "interface", "lifespan", "log_config", "log_level"),
    *("proxy_headers", "server_header", "timeout_graceful_shutdown", "ws"),
}


class _Transport(asyncio.Transport):
    """A transport that goes nowhere."""


async def _application(*_: object) -> None:
    """Answer nobody."""


@pytest.fixture
def connection() -> HttpToolsProtocol:
    """A connection of uvicorn's own with two requests; the second waits behind the first."""

    async def main() -> HttpToolsProtocol:
        config = uvicorn.Config(lambda: _application, factory=True, ws="none", log_config=None)
        found = HttpToolsProtocol(config, ServerState(), {})
        found.connection_made(_Transport())
        found.flow.read_paused = True  # so that it does not ask the transport
        found.data_received(2 * b"GET / HTTP/1.1\r\n\r\n")
        return found

    return asyncio.run(main())


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: str(kind.__name__))
def test_the_methods(kind: type) -> None:
    """Each is there, and a coroutine where we take it for one."""
    assert METHODS[kind] <= set(dir(kind))
    waited_for = {"receive", "run_asgi", "send", "drain", "main_loop", "on_tick", "serve"}
    for name in METHODS[kind]:
        awaited = name in waited_for or (kind is uvicorn.Server and name == "shutdown")
        assert inspect.iscoroutinefunction(getattr(kind, name)) == awaited, name


def test_the_attributes(connection: HttpToolsProtocol) -> None:
    """Those of a connection, of a request and of what the connections of a server share."""
    assert set(vars(connection)) >= OF_CONNECTION
    assert set(vars(connection.cycle)) >= OF_CYCLE
    assert set(vars(connection.server_state)) >= OF_STATE
    assert {"read_paused", "write_paused"} <= set(vars(connection.flow))
    assert set(inspect.signature(uvicorn.Config).parameters) >= OF_CONFIG
    assert httptools_impl.STATUS_LINE[404] == b"HTTP/1.1 404 Not Found\r\n"


def test_a_request_that_waits(connection: HttpToolsProtocol) -> None:
    """It is what `_start_asgi_task` takes; its class may be another, as nobody else can say."""
    assert isinstance(connection.pipeline, deque)
    [waiting] = connection.pipeline
    arguments: dict[str, Any] = (
        inspect.signature(HttpToolsProtocol._start_asgi_task).bind(connection, *waiting).arguments
    )
    assert arguments["cycle"] is connection.cycle
    assert arguments["app"] is connection.app
    assert type(connection.cycle) is RequestResponseCycle
    assert not hasattr(RequestResponseCycle, "__slots__")


def test_it_minds_a_client_that_wants_no_second_answer() -> None:
    """Whether uvicorn tells a request so, on which `Cycle` relies, depends on its release."""
    with running_server("--limit", "idle_seconds=1h") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            head, _, _ = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert b"connection: close" in head.split(b"\r\n")


def test_the_least_release() -> None:
    """pyproject.toml allows none before the first with all of this, and the one that is here."""
    [least] = re.findall(r'"uvicorn>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    numbers = [tuple(map(int, text.split("."))) for text in (least, version("uvicorn"))]
    assert (0, 53) <= numbers[0] <= numbers[1]
