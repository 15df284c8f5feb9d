"""Thousands of concurrent connections that send nothing, half a request, or never read."""

import contextlib
import resource
import socket
import time
from collections import Counter
from typing import Any, Final

from tests.chaos.clients import Clients
from tests.chaos.scenarios import Form, scenario
from tests.chaos.trial import Trial
from tests.serve.server import Server, running_server

CROWD: Final = 5000  # also in the short form, which takes seconds
_HEAD = b"%s HTTP/1.1\r\nHost: localhost\r\n"
_HALF = _HEAD % b"POST /GetQuote" + b"Content-Type: application/json\r\nContent-Le"
_UNREAD = (_HEAD % b"GET /openapi.json" + b"\r\n") * 20  # responses too large for any buffer
_SAYS = (b"", _HALF, *(b"", _HALF) * 14, _UNREAD)


def _missing() -> str:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return "" if hard >= 12_000 or hard == resource.RLIM_INFINITY else f"ulimit -Hn is {hard}"


def _raise_descriptor_limit() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < 12_000:
        resource.setrlimit(resource.RLIMIT_NOFILE, (12_000, hard))


def _connect(server: Server) -> socket.socket:
    host, _, port = server.url.removeprefix("http://").rpartition(":")
    sock = socket.socket()
    sock.settimeout(10)
    sock.connect((host, int(port)))
    return sock


def _connect_many(server: Server, count: int, stack: contextlib.ExitStack) -> list[socket.socket]:
    """Open `count` connections; each sends one of three things, and reads nothing."""
    crowd = []
    for number in range(count):
        sock = stack.enter_context(_connect(server))
        with contextlib.suppress(OSError):  # it may have been rejected already
            sock.sendall(_SAYS[number % len(_SAYS)])
        crowd.append(sock)
    return crowd


def _count_outcomes(crowd: list[socket.socket]) -> dict[str, int]:
    """Return the outcomes of connections after the timeouts: status, or how they ended."""
    outcomes: Counter[str] = Counter()
    for sock in crowd:
        sock.settimeout(20)
        try:
            data = sock.recv(1 << 16)
            outcomes[data[9:12].decode() if data else "closed"] += 1
        except ConnectionError:
            outcomes["closed"] += 1
        except TimeoutError:
            outcomes["still open"] += 1
    return dict(outcomes)


@scenario(
    "5,000 connections",
    "half of them silent, half with a part of a request, every 31st that reads no answer",
    _missing,
)
def crowd(form: Form) -> dict[str, Any]:
    """The external listener is full; the app's own sockets are not affected."""
    del form
    return _crowded("256", without=("/metrics",))


@scenario(
    "5,000 connections let in",
    "the same with `--limit connections=6000`, so that all of them are served",
    _missing,
)
def crowd_let_in(form: Form) -> dict[str, Any]:
    """The external listener serves all clients."""
    del form
    return _crowded("6000", without=())


def _crowded(most: str, without: tuple[str, ...]) -> dict[str, Any]:
    _raise_descriptor_limit()
    limits = (
        "--limit",
        f"connections={most}",
        "--limit",
        "head_seconds=3s",
        "--limit",
        "write_seconds=5s",
    )
    with contextlib.ExitStack() as outer:
        server = outer.enter_context(running_server(*limits))
        clients = Clients(server, without=without)
        trial = outer.enter_context(Trial(server, clients, memory=160, threads=8))
        with trial.fault(), contextlib.ExitStack() as stack:
            connections = _connect_many(server, CROWD, stack)
            begin = time.monotonic()
            trial.wait_answered("GetQuote", "EmitEvent", "GetKey", "Info", times=20)
            if not without:
                trial.wait_answered("/metrics", since=begin)
            trial.notes["strangers"] = _count_outcomes(connections)
        outer.pop_all().close()
    assert not trial.notes["strangers"].get("still open"), trial.notes
    assert sum(trial.notes["strangers"].values()) == CROWD
    return trial.result({}, {"/metrics": "no answer: (RemoteDisconnected|ConnectionResetError)"})
