"""Every response has the documented headers, once each: on each listener, whoever writes it."""

import contextlib
import http.client
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from tests.serve.server import PATIENCE, Server, running_server

STANDARD: Final = {
    "server": "attestkit simulator",
    "x-content-type-options": "nosniff",
    "x-frame-options": "SAMEORIGIN",
    "permissions-policy": "interest-cohort=()",
}
VERSION: Final = {
    "dstack": "/Version",
    "tappd": "/prpc/Tappd.Version",
    "http": "/prpc/Worker.Version",
    "dev_http": "/Version",
}
MISTAKE: Final = {
    "dstack": "/GetKey?algorithm=rsa",
    "tappd": "/prpc/DeriveK256Key?algorithm=rsa",
    "http": "/prpc/GetAttestationForAppKey?algorithm=rsa",
    "dev_http": "/GetKey?algorithm=rsa",
}
LIMITS: Final = ("connections=8", "head=2KiB", "headers=16", "body=4KiB", "head_seconds=0.2")
JSON, BINARY = "application/json", "application/octet-stream"


class Told(NamedTuple):
    """One response."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server with little patience, and little room."""
    words = [word for limit in LIMITS for word in ("--limit", limit)]
    with running_server("--dev-http", "127.0.0.1:0", *words) as server:
        yield server
        assert "Traceback" not in server.log()


def connect(server: Server, listener: str) -> socket.socket:
    """Connect to a listener."""
    place = server.ready[listener]
    if place.startswith("/"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        connection.connect(place)
        return connection
    host, _, port = place.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), PATIENCE)


def tell(connection: socket.socket, request: bytes) -> Told:
    """Send some bytes and read the response."""
    connection.sendall(request)
    response = http.client.HTTPResponse(connection, method=request.partition(b" ")[0].decode())
    response.begin()
    fields = [(name.lower(), value) for name, value in response.getheaders()]
    return Told(response.status, fields, response.read())


def check(listener: str, told: Told, *, head: bool = False) -> dict[str, str]:
    """Check what all responses have, and return their headers."""
    found = dict(told.fields)
    assert len(found) == len(told.fields)
    assert STANDARD.items() <= found.items()
    version = found.get("x-app-version")
    assert version == ("v0.5.11 (unknown)" if listener == "http" else None)
    assert "transfer-encoding" not in found
    assert head or found["content-length"] == str(len(told.body))
    return found


def request(target: str, *fields: str, verb: str = "GET", version: str = "1.1") -> bytes:
    """Return a request as it is sent."""
    lines = (f"{verb} {target} HTTP/{version}", "Host: localhost", *fields, "", "")
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("listener", VERSION)
def test_answers(server: Server, listener: str) -> None:
    """Answers and errors of methods, in both encodings, and on both ways through the server."""
    target, binary = VERSION[listener], f"Content-Type: {BINARY}"
    nothing = "Content-Length: 0"
    for asked, status, kind in (
        (request(target), 200, JSON),
        (request(target, "Content-Length: 1") + b"x", 200, JSON),
        (request(target, version="1.0"), 200, JSON),
        (request(target, "Expect: x"), 200, JSON),
        (request(target, binary, nothing, verb="POST"), 200, BINARY),
        (request(target + "?json", binary, nothing, verb="POST"), 200, JSON),
        (request(MISTAKE[listener]), 400, JSON),
        (request(MISTAKE[listener], version="1.0"), 400, JSON),
        (request("/prpc/Nothing"), 404, JSON),
        (request("/prpc/Nothing", binary, nothing, verb="POST"), 404, BINARY),
        (request("/no/such/path"), 404, JSON),
        (request(target, verb="DELETE"), 404, JSON),
        (request(target, "Content-Length: 5000", verb="POST"), 400, JSON),
        (request(target, binary, "Content-Length: 5000", verb="POST"), 400, BINARY),
    ):
        with connect(server, listener) as connection:
            told = tell(connection, asked)
        assert (told.status, check(listener, told)["content-type"]) == (status, kind), asked


@pytest.mark.parametrize("listener", VERSION)
def test_head(server: Server, listener: str) -> None:
    """HEAD has the headers of GET, the length included, and no body; then comes the next answer."""
    for target, status in ((VERSION[listener], 200), (MISTAKE[listener], 400), ("/nowhere", 404)):
        with connect(server, listener) as connection:
            head = tell(connection, request(target, verb="HEAD"))
            get = tell(connection, request(target))
        assert (head.status, get.status, head.body) == (status, status, b"")
        found, wanted = check(listener, head, head=True), check(listener, get)
        varying = ("date", "x-request-id")
        assert [(n, v) for n, v in head.fields if n not in varying] == [
            (n, v) for n, v in get.fields if n not in varying
        ]
        assert found.keys() == wanted.keys()


@pytest.mark.parametrize(
    "target", ["/", "/metrics", "/docs", "/openapi.json", "/assets/dashboard.css", "/logs/nope"]
)
def test_pages(server: Server, target: str) -> None:
    """So have the pages of the external listener, and their errors."""
    with connect(server, "http") as connection:
        check("http", tell(connection, request(target)))


REFUSED: Final = {
    "no HTTP": (b"nonsense\r\n\r\n", 400),
    "long head": (request("/" + "x" * 3000), 431),
    "many headers": (request("/", *[f"X-{number}: y" for number in range(20)]), 431),
    "half a head": (b"GET / HTTP/1.1\r\n", 408),
}


@pytest.mark.parametrize("listener", VERSION)
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refusals(server: Server, listener: str, case: tuple[bytes, int]) -> None:
    """So has what the listener refuses itself."""
    asked, status = case
    with connect(server, listener) as connection:
        told = tell(connection, asked)
    assert (told.status, check(listener, told)["content-type"]) == (status, JSON)


@pytest.mark.parametrize("listener", VERSION)
def test_one_connection_too_many(server: Server, listener: str) -> None:
    """So has the answer to whoever comes when it is full."""
    ask = request(VERSION[listener])
    with contextlib.ExitStack() as stack:
        # Those of the tests before are gone by the time that the last of these is answered.
        for _ in range(8):
            connection = stack.enter_context(connect(server, listener))
            assert tell(connection, ask).status == 200
        told = tell(stack.enter_context(connect(server, listener)), ask)
    assert (told.status, check(listener, told)["content-type"]) == (503, JSON)
