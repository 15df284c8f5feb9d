"""Hostile requests end in a refusal or a close, and the next valid request is served."""

import contextlib
from collections.abc import Iterator

import pytest

from tests.serve.client import call, connect
from tests.serve.http.attacks import (
    ATTACKS,
    SMUGGLED,
    TARGETS,
    Attack,
    create_request,
    read_statuses,
)
from tests.serve.server import Server, running_server

pytestmark = pytest.mark.slow  # its tests start programs

_LIMITS = ("head_seconds=0.4", "body_seconds=0.4", "idle_seconds=0.4", "write_seconds=1")


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server with short timeouts."""
    options = [word for limit in _LIMITS for word in ("--limit", limit)]
    others = ("--verifier", "127.0.0.1:0", "--pccs-http", "127.0.0.1:0")
    with running_server(*options, *others) as server:
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


@pytest.mark.parametrize("listener", ["http", "verifier", "pccs"])
def test_no_tcp_listener_serves_a_key(server: Server, listener: str) -> None:
    """No spelling of a target reaches a key method over TCP, whatever the verb and the encoding."""
    secrets = [
        call(server.dstack, "v1/GetKey", {"domain": "a", "algorithm": "ed25519"}).json()["key"],
        *(call(server.dstack, "GetKey", {"path": path}).json()["key"] for path in ("a", "")),
        call(server.dstack, "Sign", {"algorithm": "ed25519", "data": ""}).json()["signature"],
    ]
    bodies = [
        (b"GET", b"", b""),
        (b"HEAD", b"", b""),
        (b"POST", b'{"path":"a","domain":"a","algorithm":"ed25519"}', b"application/json"),
        (b"POST", b"\x0a\x01a\x12\x07ed25519", b"application/octet-stream"),
    ]
    for target in TARGETS:
        for verb, body, kind in bodies:
            attack = Attack("", listener, [create_request(verb, target, body, kind)], ())
            received = send_attack(server, attack)
            assert received[9:12] in {b"400", b"404", b"405"}, (target, received[:200])
            for secret in secrets:
                assert secret.encode() not in received
                assert bytes.fromhex(secret) not in received
