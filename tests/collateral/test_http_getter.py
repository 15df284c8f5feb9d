"""A URL is got from servers that behave; from others comes a CollateralError and nothing else."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import issue_leaf
from attestkit.collateral import Collateral
from attestkit.collateral.http_getter import HttpGetter
from attestkit.collateral.pccs_client import BODY_LIMIT, Response
from attestkit.errors import CollateralError, UsageError
from tests.collateral.services import COLLATERAL, QUOTE, TCB, Service

OK: Final = b"HTTP/1.1 200 OK\r\n"
CHUNKED: Final = OK + b"Transfer-Encoding: chunked\r\n\r\n"
HTTP, LARGE = "does not answer as HTTP does", f"is over {BODY_LIMIT} bytes"
PATIENCE: Final = 30.0  # seconds, of the tests themselves


def answer(body: bytes, *headers: str, length: int | None = None) -> bytes:
    """Return a response of status 200."""
    size = len(body) if length is None else length
    return (
        OK
        + "".join(f"{line}\r\n" for line in headers).encode()
        + (f"Content-Length: {size}\r\n\r\n".encode() + body)
    )


Talk = Callable[[socket.socket], None]


class Server:
    """A server that does with each connection what it is told to."""

    def __init__(self, talk: Talk, context: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self._talk = talk
        self._context = context
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with contextlib.suppress(OSError), connection:
                connection.settimeout(PATIENCE)
                if self._context is not None:
                    connection = self._context.wrap_socket(connection, server_side=True)
                request = b""
                while b"\r\n\r\n" not in request:
                    part = connection.recv(65536)
                    if not part:
                        break
                    request += part
                if request == b"stop\r\n\r\n":
                    return
                self.requests.append(request)
                with connection:
                    self._talk(connection)

    def close(self) -> None:
        """End the thread."""
        self._context = None
        with socket.create_connection(self._listener.getsockname()) as last:
            last.sendall(b"stop\r\n\r\n")
        self._thread.join(PATIENCE)
        self._listener.close()
        assert not self._thread.is_alive()


def _saying(answer: bytes) -> Talk:
    return lambda connection: connection.sendall(answer)


@pytest.fixture
def make_server() -> Iterator[Callable[..., Server]]:
    """Make servers that end with the test."""
    with contextlib.ExitStack() as stack:

        def make(talk: Talk | bytes, context: ssl.SSLContext | None = None) -> Server:
            server = Server(_saying(talk) if isinstance(talk, bytes) else talk, context)
            stack.callback(server.close)
            return server

        yield make


MakeServer = Callable[..., Server]


def refusal(url: str, timeout: float = PATIENCE) -> str:
    """Return what the getter says of `url`, without the URL."""
    with pytest.raises(CollateralError) as caught:
        HttpGetter(timeout)(url)
    assert str(caught.value).startswith(f"{url}: ")
    return str(caught.value).removeprefix(f"{url}: ")


def test_status_headers_and_body_come_back(make_server: MakeServer) -> None:
    """Any status; header names in lower case, values of one that came twice joined."""
    raw = b"HTTP/1.1 404 Gone\r\nX-A: 1\r\nx-a: 2\r\nX-B:  b \r\nContent-Length: 3\r\n\r\nabc"
    server = make_server(raw)
    got = HttpGetter()(f"{server.url}/a/b?c=%2Fd")
    headers = {"x-a": "1, 2", "x-b": "b", "content-length": "3"}
    assert got == Response(404, headers, b"abc")
    line, *fields = server.requests[0].decode().split("\r\n")
    assert line == "GET /a/b?c=%2Fd HTTP/1.1"
    names = {field.partition(":")[0].lower() for field in fields if field}
    assert names == {"host", "accept", "accept-encoding", "connection", "user-agent"}


def test_bodies_of_each_framing(make_server: MakeServer) -> None:
    """A length, chunks, or the end of the connection; and one of just the limit."""
    chunks = b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n"
    for raw in (answer(b"abc"), CHUNKED + chunks, OK + b"\r\nabc"):
        assert HttpGetter()(make_server(raw).url).body == b"abc"
    largest = bytes(BODY_LIMIT)
    assert HttpGetter()(make_server(answer(largest)).url).body == largest


def test_a_redirect_is_not_followed(make_server: MakeServer) -> None:
    """The answer is the redirect itself; the other place is not asked, and a fetch refuses it."""
    other = make_server(answer(b"x"))
    head = f"HTTP/1.1 302 Found\r\nLocation: {other.url}/\r\nContent-Length: 0\r\n\r\n"
    server = make_server(head.encode())
    assert HttpGetter()(server.url).status == 302
    with pytest.raises(CollateralError, match="answered 302; redirects are not followed"):
        Collateral.fetch(QUOTE, server.url)
    assert not other.requests


def test_proxies_of_the_environment_are_not_used(
    make_server: MakeServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Collateral comes from where it was asked for."""
    proxy, server = make_server(answer(b"proxy")), make_server(answer(b"server"))
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    assert HttpGetter()(server.url).body == b"server"
    assert not proxy.requests


@pytest.mark.parametrize(
    ("raw", "told"),
    [
        pytest.param(b"SSH-2.0-x\r\n", HTTP, id="other-protocol"),
        pytest.param(b"HTTP/1.1 abc OK\r\n\r\n", HTTP, id="bad-status"),
        pytest.param(answer(b"abc", length=4), HTTP, id="cut"),
        pytest.param(CHUNKED + b"5\r\nab", HTTP, id="cut-chunk"),
        pytest.param(CHUNKED + b"zz\r\nab", HTTP, id="bad-chunk"),
        pytest.param(answer(b"abc", "Content-Encoding: gzip"), HTTP, id="gzip"),
        pytest.param(answer(b"", length=BODY_LIMIT + 1), LARGE, id="long-length"),
        pytest.param(answer(bytes(BODY_LIMIT + 1)), LARGE, id="too-long"),
        pytest.param(OK + b"\r\n" + bytes(BODY_LIMIT + 1), LARGE, id="too-long-to-the-end"),
        pytest.param(OK + b"X: " + b"a" * 70_000 + b"\r\n\r\n", HTTP, id="long-header"),
        pytest.param(OK + b"X: y\r\n" * 200 + b"\r\n", HTTP, id="many-headers"),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\n" * 100_000, LARGE, id="endless-head"),
    ],
)
def test_what_is_no_answer_is_named(make_server: MakeServer, raw: bytes, told: str) -> None:
    """Malformed, cut, encoded or oversized answers, each with the URL."""
    text = refusal(make_server(raw).url)
    assert told in text
    assert "is this a PCCS?" in text


def test_a_header_block_that_never_ends(make_server: MakeServer) -> None:
    """Nobody holds more than the bound in memory, whatever a server goes on sending."""
    sent = []

    def talk(connection: socket.socket) -> None:
        connection.sendall(OK)
        for _ in range(200):
            connection.sendall(b"X: " + b"a" * 60_000 + b"\r\n")
            sent.append(60_000)

    assert LARGE in refusal(make_server(talk).url)
    assert sum(sent) < 200 * 60_000


def silent(connection: socket.socket) -> None:
    """Say nothing until the other side gives up."""
    connection.recv(1)


def dripping(head: bytes) -> Talk:
    """Say `head`, then a byte at a time, for as long as the other side listens."""

    def talk(connection: socket.socket) -> None:
        connection.sendall(head)
        connection.settimeout(0.02)
        while True:
            connection.sendall(b"a")
            with contextlib.suppress(TimeoutError):
                if not connection.recv(1):
                    return

    return talk


@pytest.mark.parametrize(
    "talk",
    [silent, dripping(b""), dripping(OK + b"X: "), dripping(OK + b"Content-Length: 9999\r\n\r\n")],
    ids=["silent", "status", "header", "body"],
)
def test_the_timeout_is_for_all_of_an_answer(make_server: MakeServer, talk: Talk) -> None:
    """A server that keeps sending a little does not hold us longer than one that says nothing."""
    text = refusal(make_server(talk).url, timeout=0.3)
    assert text.startswith("no answer within 0.3 s: check that the service runs")


def test_nobody_there(make_server: MakeServer) -> None:
    """A refused connection, one that ends at once, and an unknown name are named."""
    assert refusal(make_server(b"").url).startswith("Remote end closed connection")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    assert refusal(url).startswith("Connection refused: check the URL")
    assert "check the URL" in refusal("http://no-such-host.invalid")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "ftp://127.0.0.1/",
        "http://",
        "x",
        "http://[::1",
        "http://me:pw@127.0.0.1/",
        "http://127.0.0.1:99999/",
        "http://a..b/",
        "http://" + "a" * 70 + ".invalid/",
    ],
)
def test_what_is_not_fetched(url: str) -> None:
    """Other schemes and malformed URLs never reach a socket."""
    refusal(url)


@pytest.mark.parametrize("target", ["/a b", "/\r\nX: y", "/é"])
def test_a_target_cannot_smuggle(make_server: MakeServer, target: str) -> None:
    """Blanks, line breaks and other letters in a path are refused."""
    server = make_server(answer(b""))
    with contextlib.suppress(CollateralError):
        HttpGetter()(server.url + target)
    assert not any(b"\r\nX:" in request for request in server.requests)


def test_a_timeout_is_positive() -> None:
    """Zero, less, or no number at all cannot be meant."""
    for timeout in (0, -1, float("nan")):
        with pytest.raises(UsageError, match="positive number of seconds"):
            HttpGetter(timeout)


@pytest.fixture
def tls(tmp_path: Path) -> tuple[ssl.SSLContext, Path]:
    """Return the context of a server with a certificate of its own, and that certificate."""
    from cryptography.hazmat.primitives import serialization

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
        ca_cert=ca,
        ca_key=key,
        not_before=start,
        not_after=end,
    )
    authority, chain = tmp_path / "ca.pem", tmp_path / "server.pem"
    authority.write_text(ca)
    private = key.private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    chain.write_text(private.decode() + certificate_pem(leaf))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(chain)
    return context, authority


def test_https_is_verified(make_server: MakeServer, tls: tuple[ssl.SSLContext, Path]) -> None:
    """A certificate of nobody's is refused; with its authority handed in it is fetched."""
    context, authority = tls
    server = make_server(answer(b"abc"), context)
    text = refusal(server.url)
    assert text.startswith("TLS failed: CERTIFICATE_VERIFY_FAILED: check the service's certificate")
    assert not server.requests
    trusting = HttpGetter(context=ssl.create_default_context(cafile=str(authority)))
    assert trusting(server.url).body == b"abc"
    with pytest.raises(CollateralError, match="TLS failed"):
        trusting(server.url.replace("127.0.0.1", "localhost"))


def test_https_to_a_server_of_plain_http(make_server: MakeServer) -> None:
    """A scheme that is not the server's is a TLS failure, or a connection that ends."""
    server = make_server(answer(b"abc"))
    refusal(server.url.replace("http://", "https://"), timeout=0.3)


def test_a_fetch_goes_through_sockets(make_server: MakeServer) -> None:
    """The default getter fetches all parts; one that fails is named by its own URL."""
    service = Service()

    def talk(connection: socket.socket) -> None:
        target = server.requests[-1].split()[1].decode()
        status, headers, body = service(f"http://x{target}")
        lines = [f"HTTP/1.1 {status} X", *(f"{name}: {value}" for name, value in headers.items())]
        head = "\r\n".join([*lines, f"Content-Length: {len(body)}", "", ""])
        connection.sendall(head.encode() + body)

    server = make_server(talk)
    assert Collateral.fetch(QUOTE, server.url) == COLLATERAL
    service.changes[TCB] = lambda response: response._replace(body=bytes(BODY_LIMIT + 1))
    with pytest.raises(CollateralError) as caught:
        Collateral.fetch(QUOTE, server.url)
    assert str(caught.value).startswith(f"{server.url}{TCB}?fmspc=A77E57000000: the answer is over")
