"""The authority of an absolute-form target is checked like the Host header."""

import socket
from collections.abc import Iterator

import pytest

from attestkit.serve.http.request_checks import with_named_host
from tests.serve.server import Server, running_server

HOST = (b"host", b"localhost")
KEY = "/GetKey?path=x"
VERSION = "/prpc/Worker.Version"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server with both listeners that check the host."""
    with running_server("--dev-http", "127.0.0.1:0") as server:
        yield server
        server.check_log()


def request_status(url: str, line: str, *fields: str) -> int:
    """Send a request; return the status of the response."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 60) as client:
        head = (line, *fields, "Connection: close", "", "")
        client.sendall("\r\n".join(head).encode("latin-1"))
        return int(client.makefile("rb").readline().split()[1])


@pytest.mark.parametrize(
    "authority",
    [
        *(
            "http://evil.example",
            "HTTP://EVIL.EXAMPLE:80",
            "https://evil.example",
            "http://x@localhost",
        ),
        *("http://localhost.evil.example", "http://192.0.2.1:8090", "http://[::2]"),
    ],
)
def test_foreign_authority_is_refused(server: Server, authority: str) -> None:
    """A foreign authority in the target is a 400, whatever the Host header."""
    for url, path in ((server.dev_url, KEY), (server.url, VERSION)):
        assert request_status(url, f"GET {authority}{path} HTTP/1.1", "Host: localhost") == 400
        assert request_status(url, f"GET {authority}{path} HTTP/1.0") == 400


def test_loopback_authority_is_accepted(server: Server) -> None:
    """A loopback authority is accepted; a foreign Host beside it is refused."""
    for url, path in ((server.dev_url, KEY), (server.url, VERSION)):
        port = url.rpartition(":")[2]
        for authority in (f"http://localhost:{port}", "http://127.0.0.1", "HTTP://LOCALHOST"):
            assert request_status(url, f"GET {authority}{path} HTTP/1.1", "Host: localhost") == 200
            assert request_status(url, f"GET {authority}{path} HTTP/1.0") == 200
            assert (
                request_status(url, f"GET {authority}{path} HTTP/1.1", "Host: evil.example") == 400
            )
        assert request_status(url, f"GET {path} HTTP/1.1", "Host: localhost") == 200


@pytest.mark.parametrize(
    ("target", "authority"),
    [
        (b"http://a", b"a"),
        (b"http://a:1/b", b"a:1"),
        (b"HtTp://[::1]:2?c=d", b"[::1]:2"),
        (b"coap+tcp://e#f", b"e"),
        (b"http://u@a/http://b/", b"u@a"),
        (b"http:///b", b""),
    ],
)
def test_with_named_host_appends_authority(target: bytes, authority: bytes) -> None:
    """The authority is appended unchanged, with port and user info."""
    assert with_named_host(target, [HOST]) == [HOST, (b"host", authority)]


@pytest.mark.parametrize(
    "target", [b"/", b"/http://a/", b"//a/b", b"*", b"", b"a:443", b"/?http://a"]
)
def test_with_named_host_other_forms_add_nothing(target: bytes) -> None:
    """Targets in other forms name no authority."""
    assert with_named_host(target, [HOST]) == [HOST]
