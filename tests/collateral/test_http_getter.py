"""Tests of HttpGetter: valid responses, and CollateralError for all other ones."""

import contextlib
import socket
import ssl
from pathlib import Path
from typing import Final

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import issue_leaf
from attestkit.collateral import Collateral
from attestkit.collateral.http_getter import HttpGetter
from attestkit.collateral.responses import BODY_LIMIT, Response
from attestkit.errors import CollateralError, UsageError
from tests.client.wire.servers import proxying
from tests.collateral.http_server import (
    OK,
    TIMEOUT,
    CreateServer,
    Respond,
    create_pccs_server,
    create_response,
)
from tests.collateral.services import COLLATERAL, QUOTE, TCB, Service
from tests.raising import raises
from tests.runner.cases import every_case

CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"


def get_reason(url: str, timeout: float = TIMEOUT) -> str:
    """Return the reason of the getter's error, which names the URL."""
    with pytest.raises(CollateralError) as caught:
        HttpGetter(timeout)(url)
    assert str(caught.value).startswith(f"{url}: ")
    return caught.value.reason


def test_getter_returns_status_headers_and_body(create_server: CreateServer) -> None:
    """Any status is returned; header names are in lower case, repeated ones joined."""
    raw = b"HTTP/1.1 404 Gone\r\nX-A: 1\r\nx-a: 2\r\nX-B:  b \r\nContent-Length: 3\r\n\r\nabc"
    server = create_server(raw)
    response = HttpGetter()(f"{server.url}/a/b?c=%2Fd")
    headers = {"x-a": "1, 2", "x-b": "b", "content-length": "3"}
    assert response == Response(404, headers, b"abc")
    line, *fields = server.requests[0].decode().split("\r\n")
    assert line == "GET /a/b?c=%2Fd HTTP/1.1"
    names = {field.partition(":")[0].lower() for field in fields if field}
    assert names == {"host", "accept", "accept-encoding", "connection", "user-agent"}


def test_getter_reads_every_body_framing(create_server: CreateServer) -> None:
    """Content-Length, chunks and connection close are supported, up to the size limit."""
    chunks = b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    for raw in (create_response(b"abc"), CHUNKED + chunks, OK + b"\r\nabc"):
        assert HttpGetter()(create_server(raw).url).body == b"abc"
    largest = bytes(BODY_LIMIT)
    assert HttpGetter()(create_server(create_response(largest)).url).body == largest


def test_getter_does_not_follow_redirect(create_server: CreateServer) -> None:
    """A redirect is returned as such, and fails a fetch."""
    other = create_server(create_response(b"x"))
    head = f"HTTP/1.1 302 Found\r\nLocation: {other.url}/\r\nContent-Length: 0\r\n\r\n"
    server = create_server(head.encode())
    assert HttpGetter()(server.url).status == 302
    with raises(CollateralError, "fetch_failed"):
        Collateral.fetch(QUOTE, server.url)
    assert not other.requests


def test_getter_ignores_proxy_variables(
    create_server: CreateServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Proxy environment variables are ignored."""
    proxy, server = (
        create_server(create_response(b"proxy")),
        create_server(create_response(b"server")),
    )
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert HttpGetter()(server.url).body == b"server"
    assert not proxy.requests


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        pytest.param(b"SSH-2.0-x\r\n", "malformed", id="other-protocol"),
        pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", "malformed", id="bad-status"),
        pytest.param(create_response(b"abc", length=4), "malformed", id="cut"),
        pytest.param(CHUNKED + b"5\r\nab", "malformed", id="cut-chunk"),
        pytest.param(CHUNKED + b"zz\r\nab", "malformed", id="bad-chunk"),
        pytest.param(create_response(b"abc", "Content-Encoding: gzip"), "malformed", id="gzip"),
        pytest.param(create_response(b"", length=BODY_LIMIT + 1), "too_large", id="long-length"),
        pytest.param(create_response(bytes(BODY_LIMIT + 1)), "too_large", id="too-long"),
        pytest.param(OK + b"\r\n" + bytes(BODY_LIMIT + 1), "too_large", id="too-long-to-the-end"),
        pytest.param(OK + b"X: " + b"a" * 70_000 + b"\r\n\r\n", "malformed", id="long-header"),
        pytest.param(OK + b"X: y\r\n" * 200 + b"\r\n", "malformed", id="many-headers"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000, "too_large", id="endless-head"),
    ],
)
def test_getter_malformed_response_is_named(
    create_server: CreateServer, raw: bytes, reason: str
) -> None:
    """The error for a malformed, truncated, encoded or oversized response names the URL."""
    assert get_reason(create_server(raw).url) == reason


def test_getter_bounds_header_section(create_server: CreateServer) -> None:
    """An endless header section is rejected at the limit."""
    sent = []

    def respond(connection: socket.socket) -> None:
        connection.sendall(OK)
        for _ in range(200):
            connection.sendall(b"X: " + b"a" * 60_000 + b"\r\n")
            sent.append(60_000)

    assert get_reason(create_server(respond).url) == "too_large"
    assert sum(sent) < 200 * 60_000


def stay_silent(connection: socket.socket) -> None:
    """Send nothing until the peer closes."""
    connection.recv(1)


def send_slowly(head: bytes) -> Respond:
    """Send `head`, then one byte at a time, until the peer closes."""

    def respond(connection: socket.socket) -> None:
        connection.sendall(head)
        connection.settimeout(0.02)
        while True:
            connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    return

    return respond


@pytest.mark.parametrize(
    "respond",
    [
        stay_silent,
        send_slowly(b""),
        send_slowly(OK + b"X: "),
        send_slowly(OK + b"Content-Length: 9999\r\n\r\n"),
    ],
    ids=["silent", "status", "header", "body"],
)
def test_getter_timeout_covers_whole_response(
    create_server: CreateServer, respond: Respond
) -> None:
    """The timeout covers the whole response, also of a server that keeps sending slowly."""
    assert get_reason(create_server(respond).url, timeout=0.3) == "fetch_failed"


def test_getter_unreachable_server_is_named(create_server: CreateServer) -> None:
    """A refused or closed connection and an unknown host raise errors that name the URL."""
    assert get_reason(create_server(b"").url) == "fetch_failed"
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert get_reason(url) == "fetch_failed"
    assert get_reason("http://no-such-host.invalid") == "fetch_failed"


@every_case(
    "url",
    [
        "file:///etc/passwd",
        "http://",
        "http://[::1",
        "http://127.0.0.1:99999/",
        "http://" + "a" * 70 + ".invalid/",
    ],
)
def test_getter_unsupported_url_is_named(url: str) -> None:
    """Other schemes and malformed URLs are rejected before a connection."""
    get_reason(url)


@pytest.mark.parametrize("target", ["/a b", "/\r\nX: y", "/é"])
def test_getter_rejects_request_smuggling(create_server: CreateServer, target: str) -> None:
    """White space, line breaks and non-ASCII characters in a path are rejected."""
    server = create_server(create_response(b""))
    with contextlib.suppress(CollateralError):
        HttpGetter()(server.url + target)
    assert not any(b"\r\nX:" in request for request in server.requests)


def read_request(connection: socket.socket) -> bytes:
    """Return what the peer sends until nothing more comes."""
    connection.settimeout(0.2)
    found = b""
    with contextlib.suppress(TimeoutError):
        while part := connection.recv(65536):
            found += part
    return found


def test_post_sends_body_and_headers(create_server: CreateServer) -> None:
    """A POST has its body, its length and the given header fields; a redirect is returned."""
    bodies: list[bytes] = []

    def respond(connection: socket.socket) -> None:
        bodies.append(read_request(connection))
        connection.sendall(b"HTTP/1.1 307 Moved\r\nLocation: /b\r\nContent-Length: 1\r\n\r\nx")

    server = create_server(respond)
    response = HttpGetter(TIMEOUT).post(f"{server.url}/a", b"body", {"Content-Type": "a/b"})
    assert (response.status, response.body) == (307, b"x")
    (request,) = server.requests
    line, *fields = (request + bodies[0]).decode().split("\r\n")
    assert line == "POST /a HTTP/1.1"
    assert {"Content-Type: a/b", "Content-Length: 4", "Connection: close"} <= {*fields}
    assert fields[-1] == "body"


@pytest.mark.parametrize("value", ["a\r\nX: y", "a\nX: y"])
def test_post_rejects_line_breaks_in_headers(create_server: CreateServer, value: str) -> None:
    """A line break in a header field raises CollateralError, and is not sent."""
    server = create_server(create_response(b""))
    with raises(CollateralError, "malformed"):
        HttpGetter(TIMEOUT).post(server.url, b"", {"Authorization": value})
    assert not any(b"X:" in request for request in server.requests)


def test_post_too_large_response_is_named(create_server: CreateServer) -> None:
    """The limits of a response are those of a GET."""

    def respond(connection: socket.socket) -> None:
        read_request(connection)
        connection.sendall(create_response(b"", length=BODY_LIMIT + 1))

    server = create_server(respond)
    with raises(CollateralError, "too_large", start=server.url):
        HttpGetter(TIMEOUT).post(server.url, b"body", {})


def test_getter_invalid_timeout_raises_usage_error() -> None:
    """A timeout must be positive."""
    for timeout in (0, -1, float("nan")):
        with raises(UsageError, "out_of_range"):
            HttpGetter(timeout)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """Return a server's TLS context with a self-issued certificate, and its CA's path."""
    from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca

    key = P256Key.from_scalar(bytes(31) + b"\x05")
    start, end = 1577836800, 2500000000
    ca = certificate_pem(
        issue_ca(key=key, subject="test", path_length=0, not_before=start, not_after=end)
    )
    leaf = issue_leaf(
        public_key=key,
        subject="server",
        alt_names=["127.0.0.1"],
        server_auth=True,
        authority_key_id=True,  # since Python 3.13, ssl requires one
        ca_cert=ca,
        ca_key=key,
        not_before=start,
        not_after=end,
    )
    authority, chain = tmp_path / "ca.pem", tmp_path / "server.pem"
    authority.write_text(ca)
    chain.write_text(key.pkcs8_pem + certificate_pem(leaf))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context, authority


def test_getter_verifies_https_certificate(
    create_server: CreateServer, tls: tuple[ssl.SSLContext, Path]
) -> None:
    """An untrusted certificate is rejected, and accepted if its CA is passed."""
    context, authority = tls
    server = create_server(create_response(b"abc"), context)
    assert get_reason(server.url) == "fetch_failed"
    assert not server.requests
    trusting = HttpGetter(context=ssl.create_default_context(cafile=str(authority)))
    assert trusting(server.url).body == b"abc"
    with raises(CollateralError, "fetch_failed"):
        trusting(server.url.replace("127.0.0.1", "localhost"))


def test_getter_requests_tunnel_of_proxy(
    create_server: CreateServer, tls: tuple[ssl.SSLContext, Path]
) -> None:
    """With a proxy, http and https pass through its tunnels; certificates are verified in them."""
    context, authority = tls
    trusting = ssl.create_default_context(cafile=str(authority))
    for server in (
        create_server(create_response(b"abc")),
        create_server(create_response(b"abc"), context),
    ):
        with proxying() as proxy:
            getter = HttpGetter(context=trusting, proxy=proxy.url)
            assert getter(f"{server.url}/a").body == b"abc"
            assert getter.post(f"{server.url}/a", b"", {}).body == b"abc"
            target = f"CONNECT {server.url.partition('://')[2]} HTTP/1.1".encode()
            assert proxy.targets == [target] * 2
    with proxying() as proxy, raises(CollateralError, "fetch_failed"):
        HttpGetter(proxy=proxy.url)(server.url)


def test_getter_rejected_or_slow_tunnel_is_named(create_server: CreateServer) -> None:
    """A proxy that refuses, cannot be reached or never answers raises an error with the URL."""
    server = create_server(create_response(b"abc"))
    with proxying(answer=b"HTTP/1.1 403 Forbidden\r\n\r\n") as proxy:
        with raises(CollateralError, "fetch_failed", start=f"{server.url}: "):
            HttpGetter(TIMEOUT, proxy=proxy.url)(server.url)
        with raises(CollateralError, "malformed"):
            HttpGetter(TIMEOUT, proxy=proxy.url)("http://" + "a" * 70 + ".invalid/")
    with raises(CollateralError, "fetch_failed", start=f"{server.url}: "):
        HttpGetter(TIMEOUT, proxy=proxy.url)(server.url)
    slow = create_server(send_slowly(b""))
    with raises(CollateralError, "fetch_failed", start=f"{server.url}: "):
        HttpGetter(0.3, proxy=slow.url)(server.url)
    assert not server.requests


@every_case("proxy", ["https://127.0.0.1:1", "127.0.0.1:1", "http://", "", "http://a b:1"])
def test_getter_malformed_proxy_raises_usage_error(proxy: str) -> None:
    """The URL of a proxy has the scheme http and a host."""
    with raises(UsageError, "wrong_value"):
        HttpGetter(proxy=proxy)


def test_getter_https_to_http_server_fails(create_server: CreateServer) -> None:
    """HTTPS to a plain HTTP server raises CollateralError."""
    server = create_server(create_response(b"abc"))
    get_reason(server.url.replace("http://", "https://"), timeout=0.3)


def test_fetch_over_sockets(create_server: CreateServer) -> None:
    """The default getter fetches all parts, and an error names the URL of its part."""
    service = Service()
    server = create_pccs_server(create_server, service)
    assert Collateral.fetch(QUOTE, server.url) == COLLATERAL
    service.changes[TCB] = lambda response: response._replace(body=bytes(BODY_LIMIT + 1))
    with raises(CollateralError, "too_large", start=f"{server.url}{TCB}?fmspc=507757000000: "):
        Collateral.fetch(QUOTE, server.url)
