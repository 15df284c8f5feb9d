"""Who is named in a target in absolute form is who was meant, whatever `Host` says beside it."""

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
    """A server with both listeners that hold callers to a name."""
    with running_server("--dev-http", "127.0.0.1:0") as server:
        yield server
        server.check_log()


def status(url: str, line: str, *fields: str) -> int:
    """Send a request as it stands; return the status of its answer."""
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), 60) as client:
        head = (line, *fields, "Connection: close", "", "")
        client.sendall("\r\n".join(head).encode("latin-1"))
        return int(client.makefile("rb").readline().split()[1])


@pytest.mark.parametrize(
    "meant",
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
def test_another_machine_is_meant(server: Server, meant: str) -> None:
    """Refused like a foreign Host, also beside one of ours and without any, by either listener."""
    for url, path in ((server.dev_url, KEY), (server.url, VERSION)):
        assert status(url, f"GET {meant}{path} HTTP/1.1", "Host: localhost") == 400
        assert status(url, f"GET {meant}{path} HTTP/1.0") == 400


def test_this_machine_is_meant(server: Server) -> None:
    """By its own names it answers as ever; a Host of another machine is refused as ever."""
    for url, path in ((server.dev_url, KEY), (server.url, VERSION)):
        port = url.rpartition(":")[2]
        for meant in (f"http://localhost:{port}", "http://127.0.0.1", "HTTP://LOCALHOST"):
            assert status(url, f"GET {meant}{path} HTTP/1.1", "Host: localhost") == 200
            assert status(url, f"GET {meant}{path} HTTP/1.0") == 200
            assert status(url, f"GET {meant}{path} HTTP/1.1", "Host: evil.example") == 400
        assert status(url, f"GET {path} HTTP/1.1", "Host: localhost") == 200


@pytest.mark.parametrize(
    ("target", "named"),
    [
        (b"http://a", b"a"),
        (b"http://a:1/b", b"a:1"),
        (b"HtTp://[::1]:2?c=d", b"[::1]:2"),
        (b"coap+tcp://e#f", b"e"),
        (b"http://u@a/http://b/", b"u@a"),
        (b"http:///b", b""),
    ],
)
def test_the_name_stands_beside_the_hosts(target: bytes, named: bytes) -> None:
    """As it came, with its port and what no host has, for a guard to judge."""
    assert with_named_host(target, [HOST]) == [HOST, (b"host", named)]


@pytest.mark.parametrize(
    "target", [b"/", b"/http://a/", b"//a/b", b"*", b"", b"a:443", b"/?http://a"]
)
def test_other_forms_name_nobody(target: bytes) -> None:
    """Then `Host` alone says it."""
    assert with_named_host(target, [HOST]) == [HOST]
