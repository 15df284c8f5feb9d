"""httpx and httpx2 with servers that close, hang, cut, or send more than was requested."""

import socket
import ssl

import pytest

from attestkit.client.wire.exchange import MAX_CONNECTIONS
from attestkit.client.wire.tls import tls_context
from attestkit.errors import ServiceError, UsageError
from attestkit.ra_tls import PeerRefusedError
from tests.client.wire.httpx_transport.httpx_clients import calling, every_client, iter_of
from tests.client.wire.servers import (
    TIMEOUT,
    http_answer,
    serving,
)
from tests.client.wire.simple_verifier import NeverRemembers, SimpleServerVerifier
from tests.raising import raises


@every_client
def test_httpx_opens_another_connection_after_closed_document(kind: str) -> None:
    """A server that closes after its document gets the request on the next connection, once."""
    with serving(close_after_document=1) as server:
        with calling(kind, SimpleServerVerifier(server)) as caller:
            answer = caller.post(server.url + "/x", content=iter_of(caller, b"ab", b"cd"))
            assert answer.json()["body"] == "abcd"
        assert server.requests == [b"/x"]
        assert len(server.connections) == 2
        assert server.questions == 1


@every_client
def test_httpx_gives_up_when_no_connection_is_kept(kind: str) -> None:
    """A server that always closes after its document is refused after a few connections."""
    with serving(close_after_document=100) as server:
        server_verifier = SimpleServerVerifier(server)
        server_verifier.accepted = NeverRemembers()
        with calling(kind, server_verifier) as caller, raises(ServiceError, "connection"):
            caller.post(server.url, content=b"secret")
        assert len(server.connections) == MAX_CONNECTIONS
        assert server.received == b""


@every_client
def test_httpx_gives_up_on_hanging_server(kind: str) -> None:
    """A server that does not answer the question is refused in time."""
    with serving(hang=True) as server:
        server_verifier = SimpleServerVerifier(server, seconds=0.2)
        with calling(kind, server_verifier) as caller, raises(PeerRefusedError, "timeout"):
            caller.post(server.url, content=b"secret")
        assert server.received == b""
        assert server.connections[0].ended.wait(TIMEOUT), "the connection is closed"


@every_client
def test_httpx_reports_lost_connection_during_the_question(kind: str) -> None:
    """A connection that is reset before the document is there is an error of connecting."""
    with serving(cut=True) as server:
        server_verifier = SimpleServerVerifier(server)
        with (
            calling(kind, server_verifier) as caller,
            pytest.raises((caller.library.ConnectError, PeerRefusedError)),
        ):
            caller.post(server.url, content=b"secret")
        assert server.received == b""


@every_client
def test_httpx_refuses_bytes_after_the_document(kind: str) -> None:
    """An answer that is ready before its request is not taken for one."""
    with serving(extra=http_answer(b"forged")) as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier) as caller, raises(PeerRefusedError, "trailing_data"):
            caller.post(server.url, content=b"secret")
        assert server.received == b""


@every_client
def test_httpx_refuses_bytes_before_the_question(kind: str) -> None:
    """An answer without nonce that is there before the question proves nothing."""
    with serving(first=http_answer(b"{}")) as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier) as caller, raises(PeerRefusedError, "internal"):
            caller.post(server.url, content=b"secret")
        assert server.received == b""


@every_client
def test_httpx_verifies_name_and_chain(kind: str) -> None:
    """WebPKI stays on: a chain to another CA is refused before the question."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier) as caller:
            context = caller.transport._options._origin.context
            assert context.verify_mode == ssl.CERT_REQUIRED
            assert context.check_hostname
            caller.transport._options._origin.context = tls_context()
            with pytest.raises(caller.library.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                caller.post(server.url, content=b"secret")
        assert server.questions == 0
        assert server.received == b""


@every_client
def test_httpx_ignores_sni_of_a_request(kind: str) -> None:
    """The name that is verified is the server's, whatever a request says."""
    with serving() as server, calling(kind, SimpleServerVerifier(server)) as caller:
        extensions = {"sni_hostname": "unknown.example"}
        assert caller.get(server.url, extensions=extensions).status_code == 200


@every_client
def test_httpx_asks_nobody_when_closed(kind: str) -> None:
    """A closed endpoint, or one that was refused lately, opens no connection."""
    with serving() as server:
        server_verifier = SimpleServerVerifier(server)
        server_verifier.closed = UsageError("endpoint: closed", reason="closed")
        with calling(kind, server_verifier) as caller, raises(UsageError, "closed"):
            caller.get(server.url)
        assert server.connections == []


@every_client
def test_httpx_maps_errors(kind: str) -> None:
    """Errors of I/O are those of the library."""

    def cut(secured: ssl.SSLSocket, head: bytes, _body: bytes) -> None:
        if b" /hang " in head:
            secured.recv(1)
        elif b" /part " in head:
            secured.sendall(http_answer(b"x" * 9)[:-1])
        raise ConnectionError

    with serving(answer=cut) as server:
        server_verifier = SimpleServerVerifier(server)
        with calling(kind, server_verifier) as caller:
            library = caller.library
            with pytest.raises(library.RemoteProtocolError):
                caller.get(server.url + "/nothing")
            with pytest.raises(library.RemoteProtocolError):
                caller.get(server.url + "/part")
            with pytest.raises(library.ReadTimeout):
                caller.get(server.url + "/hang", timeout=library.Timeout(TIMEOUT, read=0.1))
            server_verifier.port = free_port()
            with pytest.raises(library.ConnectError):
                caller.get(f"https://127.0.0.1:{server_verifier.port}/")


def free_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@every_client
def test_httpx_streams_both_bodies(kind: str) -> None:
    """A request's body is sent while it is made, and an answer's is read while it comes."""

    def answer(secured: ssl.SSLSocket, _head: bytes, body: bytes) -> None:
        secured.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        secured.sendall(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))

    with serving(answer=answer) as server:
        with calling(kind, SimpleServerVerifier(server)) as caller:
            body = iter_of(caller, *[bytes([one]) * 50_000 for one in range(20)])
            response = caller.open(server.url, "POST", content=body)
            received = b"".join(caller.pieces(response))
            caller.close_response(response)
        assert received == b"".join(bytes([one]) * 50_000 for one in range(20))
