"""Untrusted input never causes a traceback, and keys are never served over TCP."""

import contextlib
import random
import re
import socket
from collections.abc import Iterator

import pytest

from tests.serve.client import Connection, call
from tests.serve.server import Server, running_server


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server for all tests of this module."""
    with running_server("--dev-http", "127.0.0.1:0") as server:
        yield server
        server.check_log()


@pytest.mark.parametrize("method", ["GetKey", "Sign", "EmitEvent", "GetTlsKey", "GetQuote"])
def test_key_methods_are_not_on_external_listener(server: Server, method: str) -> None:
    """The external listener has no method that returns or uses a key."""
    for path in (method, f"prpc/{method}", f"prpc/Worker.{method}"):
        assert call(server.url, path, {"path": "x"}).status == 404


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://localhost"}, {"Host": "attacker.example"}, {"Host": ""}]
)
def test_dev_http_refuses_browser_requests(server: Server, headers: dict[str, str]) -> None:
    """--dev-http refuses requests with an Origin or a foreign Host."""
    connection = Connection(server.dev_url)
    answer = connection.send_request("GET", "/GetKey?path=x", None, headers)
    connection.close()
    assert answer.status == 400
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("length", ["announced", "chunked"])
def test_oversized_body_is_not_read(server: Server, length: str) -> None:
    """A body over 10 MiB is refused with the documented text before its end."""
    chunk = bytes(1 << 20)
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(server.dstack)
        head = "POST /Sign HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        if length == "announced":
            client.sendall(f"{head}Content-Length: {1 << 40}\r\n\r\n".encode())
        else:
            client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            with contextlib.suppress(ConnectionError):
                for _ in range(100):
                    client.sendall(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                pytest.fail("took 100 MiB")
        answer = b""
        with contextlib.suppress(ConnectionError):  # what was not read ends it so
            while part := client.recv(1 << 16):
                answer += part
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"payload too large" in answer


def _garbage(seed: int) -> bytes:
    """Return a request with random damage."""
    dice = random.Random(seed)
    good = (
        b"POST /%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s"
    )
    methods = (
        b"GetKey",
        b"GetQuote",
        b"Sign",
        b"Verify",
        b"EmitEvent",
        b"GetTlsKey",
        b"Info",
        b"x",
    )
    bodies = (
        b'{"path": "a", "purpose": "b", "report_data": "00", "data": "00", "algorithm": "ed25519"}',
        b'{"path": null, "report_data": 1, "data": [], "not_before": -1, "payload": "0"}',
        b'{"alt_names": ["\\ud800", ""], "subject": "\\u0000", "not_after": 1e400}',
        b"[" * 2000,
        b"\xff\xfe{}",
        b'{"signature": "00", "public_key": "zz", "event": ":", "payload": "ZZ"}',
    )
    body = dice.choice(bodies)
    request = bytearray(good % (dice.choice(methods), len(body), body))
    for _ in range(dice.randrange(4)):
        at = dice.randrange(len(request))
        request[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
    return bytes(request)


@pytest.mark.parametrize("listener", ["dstack", "tappd", "http", "dev_http"])
def test_damaged_requests_cause_no_traceback(server: Server, listener: str) -> None:
    """Damaged requests are answered or refused, and the log stays clean."""
    target = server.ready[listener]
    for seed in range(150):
        connection = Connection(target)
        connection.connect()
        connection.sock.settimeout(60)
        with contextlib.suppress(ConnectionError):
            connection.sock.sendall(_garbage(seed))
            connection.sock.shutdown(socket.SHUT_WR)
            answer = connection.sock.makefile("rb").read()
            assert answer == b"" or re.match(rb"HTTP/1\.1 (200|400|404|431) ", answer), answer
        connection.close()
    version = {"tappd": "prpc/Version", "http": "prpc/Version"}.get(listener, "Version")
    assert call(target, version).status == 200
    server.check_log()
    assert len(server.log().splitlines()) == 5  # the banner
