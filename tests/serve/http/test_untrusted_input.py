"""Untrusted input never causes a traceback, and keys are never served over TCP."""

import contextlib
import random
import re
import socket

import pytest

from tests.serve.client import call, connect
from tests.serve.server import Server


@pytest.mark.parametrize("method", ["GetKey", "Sign", "EmitEvent", "GetTlsKey", "GetQuote"])
def test_key_methods_are_not_on_external_listener(dev_server: Server, method: str) -> None:
    """The external listener has no method that returns or uses a key."""
    for path in (method, f"prpc/{method}", f"prpc/Worker.{method}"):
        assert call(dev_server.url, path, {"path": "x"}).status == 404


@pytest.mark.parametrize("length", ["announced", "chunked"])
def test_oversized_body_is_not_read(dev_server: Server, length: str) -> None:
    """A body over 10 MiB is refused with the documented text before its end."""
    chunk = bytes(1 << 20)
    with connect(dev_server.dstack) as client:
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
    methods = b"GetKey GetQuote Sign Verify EmitEvent GetTlsKey Info x".split()
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
def test_damaged_requests_cause_no_traceback(dev_server: Server, listener: str) -> None:
    """Damaged requests are answered or refused, and the log stays clean."""
    target = dev_server.ready[listener]
    for seed in range(150):
        with connect(target) as connection, contextlib.suppress(ConnectionError):
            connection.sendall(_garbage(seed))
            connection.shutdown(socket.SHUT_WR)
            answer = connection.makefile("rb").read()
            assert answer == b"" or re.match(rb"HTTP/1\.1 (200|400|404|431) ", answer), answer
    version = {"tappd": "prpc/Version", "http": "prpc/Version"}.get(listener, "Version")
    assert call(target, version).status == 200
    dev_server.check_log()
