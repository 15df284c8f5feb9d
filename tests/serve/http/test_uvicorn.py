"""The undocumented parts of uvicorn that attestkit uses exist and behave as expected.

The minimum version in pyproject.toml is the first with all of them.
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

METHODS = {  # called or overridden by attestkit
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
    """A transport that discards all data."""


async def _application(*_: object) -> None:
    """Send no response."""


@pytest.fixture
def connection() -> HttpToolsProtocol:
    """Return a uvicorn connection with two requests, the second of which is queued."""

    async def main() -> HttpToolsProtocol:
        config = uvicorn.Config(lambda: _application, factory=True, ws="none", log_config=None)
        found = HttpToolsProtocol(config, ServerState(), {})
        found.connection_made(_Transport())
        found.flow.read_paused = True  # avoids a call of the transport
        found.data_received(2 * b"GET / HTTP/1.1\r\n\r\n")
        return found

    return asyncio.run(main())


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: str(kind.__name__))
def test_uvicorn_methods_exist(kind: type) -> None:
    """Each method exists, and is a coroutine function where it is awaited."""
    assert METHODS[kind] <= set(dir(kind))
    waited_for = {"receive", "run_asgi", "send", "drain", "main_loop", "on_tick", "serve"}
    for name in METHODS[kind]:
        awaited = name in waited_for or (kind is uvicorn.Server and name == "shutdown")
        assert inspect.iscoroutinefunction(getattr(kind, name)) == awaited, name


def test_uvicorn_attributes_exist(connection: HttpToolsProtocol) -> None:
    """Attributes of connections, requests and the server state exist."""
    assert set(vars(connection)) >= OF_CONNECTION
    assert set(vars(connection.cycle)) >= OF_CYCLE
    assert set(vars(connection.server_state)) >= OF_STATE
    assert {"read_paused", "write_paused"} <= set(vars(connection.flow))
    assert set(inspect.signature(uvicorn.Config).parameters) >= OF_CONFIG
    assert httptools_impl.STATUS_LINE[404] == b"HTTP/1.1 404 Not Found\r\n"


def test_uvicorn_queued_request_arguments(connection: HttpToolsProtocol) -> None:
    """A queued request is the arguments of `_start_asgi_task`, and its class can be replaced."""
    assert isinstance(connection.pipeline, deque)
    [waiting] = connection.pipeline
    arguments: dict[str, Any] = (
        inspect.signature(HttpToolsProtocol._start_asgi_task).bind(connection, *waiting).arguments
    )
    assert arguments["cycle"] is connection.cycle
    assert arguments["app"] is connection.app
    assert type(connection.cycle) is RequestResponseCycle
    assert not hasattr(RequestResponseCycle, "__slots__")


def test_uvicorn_honours_connection_close() -> None:
    """The response to `Connection: close` closes the connection in every supported version."""
    with running_server("--limit", "idle_seconds=1h") as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), PATIENCE) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            head, _, _ = client.makefile("rb").read().partition(b"\r\n\r\n")
    assert b"connection: close" in head.split(b"\r\n")


def test_uvicorn_minimum_version() -> None:
    """The minimum version is at least 0.53 and at most the installed one."""
    [least] = re.findall(r'"uvicorn>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text())
    numbers = [tuple(map(int, text.split("."))) for text in (least, version("uvicorn"))]
    assert (0, 53) <= numbers[0] <= numbers[1]
