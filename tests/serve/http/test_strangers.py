"""Whatever comes in over a socket, nobody gets keys over TCP, and nobody gets a traceback."""

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
    """A server that nobody stops before the end."""
    with running_server("--dev-http", "127.0.0.1:0") as server:
        yield server
        server.check_log()


@pytest.mark.parametrize("method", ["GetKey", "Sign", "EmitEvent", "GetTlsKey", "GetQuote"])
def test_keys_are_not_on_tcp(server: Server, method: str) -> None:
    """The external listener knows no method that gives out or uses a key."""
    for path in (method, f"prpc/{method}", f"prpc/Worker.{method}"):
        assert call(server.url, path, {"path": "x"}).status == 404


@pytest.mark.parametrize(
    "headers", [{"Origin": "http://localhost"}, {"Host": "attacker.example"}, {"Host": ""}]
)
def test_web_pages_get_no_keys(server: Server, headers: dict[str, str]) -> None:
    """--dev-http refuses what a browser sends for a page."""
    connection = Connection(server.dev_url)
    answer = connection.send_request("GET", "/GetKey?path=x", None, headers)
    connection.close()
    assert answer.status == 400
    assert list(answer.json()) == ["error"]


@pytest.mark.parametrize("length", ["announced", "chunked"])
def test_a_body_that_is_too_large_is_not_read(server: Server, length: str) -> None:
    """Over 10 MiB is refused with the documented words, long before the end."""
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
    """Return something that looks like a request until it does not."""
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


@pytest.mark.parametrize("which", ["dstack", "tappd", "http", "dev_http"])
def test_no_input_gets_a_traceback(server: Server, which: str) -> None:
    """Requests with random damage are answered or refused; the log stays clean, and it lives."""
    target = server.ready[which]
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
    version = {"tappd": "prpc/Version", "http": "prpc/Version"}.get(which, "Version")
    assert call(target, version).status == 200
    server.check_log()
    assert len(server.log().splitlines()) == 5  # the banner
