"""Hostile requests end in a refusal or a close, and the next valid request is served."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.serve.client import call, connect
from tests.serve.http.attacks import ATTACKS, SMUGGLED, Attack, read_statuses
from tests.serve.server import Server, running_server

_LIMITS = ("head_seconds=0.4", "body_seconds=0.4", "idle_seconds=0.4", "write_seconds=1")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server with short timeouts."""
    options = [word for limit in _LIMITS for word in ("--limit", limit)]
    with running_server(*options) as server:
        yield server
        server.check_log()


def send_attack(server: Server, attack: Attack) -> bytes:
    """Send an attack; return the response until the server closes the connection."""
    received = b""
    with connect(server.ready[attack.listener]) as connection, contextlib.suppress(ConnectionError):
        for part in attack.parts:
            connection.sendall(part)
        if attack.after is not None:
            attack.after(connection)
        while connection.fileno() >= 0 and (piece := connection.recv(1 << 16)):
            received += piece
    return received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")


@pytest.mark.parametrize("attack", ATTACKS, ids=[attack.name for attack in ATTACKS])
def test_attack_ends_and_next_request_is_served(server: Server, attack: Attack) -> None:
    """The outcome is acceptable, nothing hidden is executed, and the server still works."""
    received = send_attack(server, attack)
    assert read_statuses(received) in attack.answers, received[:500]
    if attack.listener == "http":
        assert b"signature_chain" not in received
    method = "prpc/Version" if attack.listener == "http" else "Version"
    assert call(server.ready[attack.listener], method).status == 200
    log = call(server.dstack, "GetQuote", {"report_data": "00"}).json()["event_log"]
    assert SMUGGLED not in log
