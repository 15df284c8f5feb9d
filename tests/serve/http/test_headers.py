"""Every response of every listener has the documented headers, once each."""

import contextlib
import http.client
import socket
from collections.abc import Iterator
from typing import Final, NamedTuple

import pytest

from tests.serve.client import connect
from tests.serve.server import Server, running_server

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


class ParsedResponse(NamedTuple):
    """A response with its header fields in order."""

    status: int
    fields: list[tuple[str, str]]
    body: bytes


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """Return a server with short timeouts and low limits."""
    words = [word for limit in LIMITS for word in ("--limit", limit)]
    with running_server("--dev-http", "127.0.0.1:0", *words) as server:
        yield server
        assert "Traceback" not in server.log()


def send_request(connection: socket.socket, request: bytes) -> ParsedResponse:
    """Send bytes and read the response."""
    connection.sendall(request)
    response = http.client.HTTPResponse(connection, method=request.partition(b" ")[0].decode())
    response.begin()
    fields = [(name.lower(), value) for name, value in response.getheaders()]
    return ParsedResponse(response.status, fields, response.read())


def check_headers(listener: str, response: ParsedResponse, *, head: bool = False) -> dict[str, str]:
    """Check the common headers; return all headers."""
    found = dict(response.fields)
    assert len(found) == len(response.fields)
    assert STANDARD.items() <= found.items()
    version = found.get("x-app-version")
    assert version == ("v0.5.11 (unknown)" if listener == "http" else None)
    assert "transfer-encoding" not in found
    assert head or found["content-length"] == str(len(response.body))
    return found


def check_response(listener: str, response: ParsedResponse, status: int, kind: str) -> None:
    """Check the status, the content type and the common headers."""
    assert response.status == status
    assert check_headers(listener, response)["content-type"] == kind


def encode_request(target: str, *fields: str, verb: str = "GET", version: str = "1.1") -> bytes:
    """Return a request."""
    lines = (f"{verb} {target} HTTP/{version}", "Host: localhost", *fields, "", "")
    return "\r\n".join(lines).encode()


@pytest.mark.parametrize("listener", VERSION)
def test_responses_of_methods_have_headers(server: Server, listener: str) -> None:
    """Successes and errors of methods have the headers, in both encodings."""
    target, binary = VERSION[listener], f"Content-Type: {BINARY}"
    nothing = "Content-Length: 0"
    for asked, status, kind in (
        (encode_request(target), 200, JSON),
        (encode_request(target, "Content-Length: 1") + b"x", 200, JSON),
        (encode_request(target, version="1.0"), 200, JSON),
        (encode_request(target, "Expect: x"), 200, JSON),
        (encode_request(target, binary, nothing, verb="POST"), 200, BINARY),
        (encode_request(target + "?json", binary, nothing, verb="POST"), 200, JSON),
        (encode_request(MISTAKE[listener]), 400, JSON),
        (encode_request(MISTAKE[listener], version="1.0"), 400, JSON),
        (encode_request("/prpc/Nothing"), 404, JSON),
        (encode_request("/prpc/Nothing", binary, nothing, verb="POST"), 404, BINARY),
        (encode_request("/prpc/Nothing", "Content-Length: 70000", verb="POST"), 404, JSON),
        (encode_request("/no/such/path"), 404, JSON),
        (encode_request(target, verb="DELETE"), 404, JSON),
        (encode_request(target, "Content-Length: 5000", verb="POST"), 413, JSON),
        (encode_request(target, binary, "Content-Length: 5000", verb="POST"), 413, BINARY),
    ):
        with connect(server.ready[listener]) as connection:
            response = send_request(connection, asked)
        check_response(listener, response, status, kind)


@pytest.mark.parametrize("listener", VERSION)
def test_head_has_headers_of_get(server: Server, listener: str) -> None:
    """HEAD has the headers of GET, including the length, and no body."""
    for target, status in ((VERSION[listener], 200), (MISTAKE[listener], 400), ("/nowhere", 404)):
        with connect(server.ready[listener]) as connection:
            head = send_request(connection, encode_request(target, verb="HEAD"))
            get = send_request(connection, encode_request(target))
        assert (head.status, get.status, head.body) == (status, status, b"")
        found, expected = check_headers(listener, head, head=True), check_headers(listener, get)
        varying = ("date", "x-request-id")
        assert [(n, v) for n, v in head.fields if n not in varying] == [
            (n, v) for n, v in get.fields if n not in varying
        ]
        assert found.keys() == expected.keys()


@pytest.mark.parametrize(
    "target", ["/", "/metrics", "/docs", "/openapi.json", "/assets/dashboard.css", "/logs/nope"]
)
def test_pages_have_headers(server: Server, target: str) -> None:
    """Pages of the external listener and their errors have the headers."""
    with connect(server.url) as connection:
        check_headers("http", send_request(connection, encode_request(target)))


REFUSED: Final = {
    "no HTTP": (b"nonsense\r\n\r\n", 400),
    "long head": (encode_request("/" + "x" * 3000), 431),
    "many headers": (encode_request("/", *[f"X-{number}: y" for number in range(20)]), 431),
    "half a head": (b"GET / HTTP/1.1\r\n", 408),
}


@pytest.mark.parametrize("listener", VERSION)
@pytest.mark.parametrize("case", REFUSED.values(), ids=REFUSED)
def test_refusals_have_headers(server: Server, listener: str, case: tuple[bytes, int]) -> None:
    """Refusals by the listener itself have the headers."""
    asked, status = case
    with connect(server.ready[listener]) as connection:
        response = send_request(connection, asked)
    check_response(listener, response, status, JSON)


@pytest.mark.parametrize("listener", VERSION)
def test_connection_limit_response_has_headers(server: Server, listener: str) -> None:
    """The 503 over the connection limit has the headers."""
    ask = encode_request(VERSION[listener])
    with contextlib.ExitStack() as stack:
        # The connections of earlier tests are closed by the time the last of these is answered.
        for _ in range(8):
            connection = stack.enter_context(connect(server.ready[listener]))
            assert send_request(connection, ask).status == 200
        response = send_request(stack.enter_context(connect(server.ready[listener])), ask)
    check_response(listener, response, 503, JSON)
