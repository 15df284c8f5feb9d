"""TLS of a listener: the client's certificate, early bytes, and handshakes that fail."""

import logging
import socket
import ssl
from typing import Any

import pytest
from typing_extensions import Self

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca, issue_leaf
from attestkit.errors import BackendError
from attestkit.ra_tls.issuance import Issued, load_issued
from attestkit.serve.config.limits import Limits
from attestkit.serve.event_loop_thread import EventLoopThread, start_listeners, stop_listeners
from attestkit.serve.http.asgi import Receive, Scope, Send, send_response
from attestkit.serve.http.server import Listener
from attestkit.serve.http.tls import TlsContexts, client_certificate

SECONDS = 20.0
KEY = P256Key.from_scalar(b"\x41" * 32)
WINDOW: dict[str, Any] = {"not_before": 0, "not_after": 4_000_000_000}
CA = certificate_pem(issue_ca(key=KEY, subject="ca", path_length=0, **WINDOW))
LEAF = certificate_pem(
    issue_leaf(
        public_key=KEY, subject="x", alt_names=("localhost",), ca_cert=CA, ca_key=KEY, **WINDOW
    )
)


def server_context() -> ssl.SSLContext:
    """Return a context that accepts clients with and without a certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.load_verify_locations(cadata=CA)
    load_issued(context, Issued(KEY.pkcs8_pem, (LEAF,)))
    return context


def client_context(*, certificate: bool) -> ssl.SSLContext:
    """Return a client's context."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cadata=CA)
    if certificate:
        load_issued(context, Issued(KEY.pkcs8_pem, (LEAF,)))
    return context


async def show_certificate(scope: Scope, _: Receive, send: Send) -> None:
    """Answer with the scheme and the client's certificate."""
    body = f"{scope['scheme']} {client_certificate(scope)}".encode()
    await send_response(scope, send, 200, [], body)


class Running:
    """A listener with TLS in a thread."""

    def __init__(self, contexts: TlsContexts, limits: Limits) -> None:
        self._thread = EventLoopThread()
        sock = socket.create_server(("127.0.0.1", 0))
        self.port = sock.getsockname()[1]
        listener = Listener(show_certificate, sock, limits, "test", tls=contexts)
        self._task = self._thread.run(lambda: start_listeners([listener]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.run(lambda: stop_listeners(self._task))
        self._thread.close()

    def get(self, *, certificate: bool = False, requests: int = 1) -> bytes:
        """Send GET requests on one connection; return the last response."""
        context = client_context(certificate=certificate)
        with (
            socket.create_connection(("127.0.0.1", self.port), SECONDS) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as sock,
        ):
            *first, last = [b"GET / HTTP/1.1\r\nhost: x\r\n"] * requests
            for one in first:
                sock.sendall(one + b"\r\n")
                assert sock.recv(65536)
            sock.sendall(last + b"connection: close\r\n\r\n")
            found = b""
            while part := sock.recv(65536):
                found += part
            return found


def running(contexts: TlsContexts | None = None, **limits: Any) -> Running:
    """Return a running listener."""
    context = server_context()
    return Running(contexts or (lambda: context), Limits(**{"drain_seconds": 0, **limits}))


@pytest.mark.parametrize("requests", [1, 3])
def test_application_gets_the_client_certificate(requests: int) -> None:
    """As in the ASGI TLS extension, for each request of a connection."""
    with running() as server:
        found = server.get(certificate=True, requests=requests)
        assert found.startswith(b"HTTP/1.1 200 ")
        body = found.partition(b"\r\n\r\n")[2].decode()
        assert "".join(body.split()) == "".join(f"https {LEAF}".split())
        assert server.get().endswith(b"https None")


def test_server_survives_contexts_that_fail(caplog: pytest.LogCaptureFixture) -> None:
    """The connection is closed, the failure logged, and the next one is served."""
    context, failures = server_context(), [BackendError("device: busy", reason="io_error")]

    def contexts() -> ssl.SSLContext:
        if failures:
            raise failures.pop()
        return context

    with running(contexts, connections=1) as server:
        with pytest.raises(OSError, match=r".*"):
            server.get()
        assert server.get().startswith(b"HTTP/1.1 200 ")
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


def receive(sock: socket.socket) -> bytes:
    """Return the next bytes of a connection that must not end."""
    data = sock.recv(65536)
    assert data
    return data


@pytest.mark.parametrize("cut", [1, 5, 100])
def test_handshake_may_come_in_pieces(cut: int) -> None:
    """Bytes that arrive before, during and after the handshake are all read."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = client_context(certificate=True).wrap_bio(incoming, outgoing, server_hostname="localhost")
    with running() as server, socket.create_connection(("127.0.0.1", server.port), SECONDS) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

        def flush() -> None:
            data = outgoing.read()
            for at in range(0, len(data), cut):
                sock.sendall(data[at : at + cut])

        while True:
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                flush()
                incoming.write(receive(sock))
            else:
                break
        tls.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        flush()  # the end of the handshake and the request at once
        found = b""
        while b"END CERTIFICATE" not in found:
            incoming.write(receive(sock))
            try:
                found += tls.read()
            except ssl.SSLWantReadError:
                continue
        assert found.startswith(b"HTTP/1.1 200 ")


def test_shutdown_ends_handshakes() -> None:
    """A client in its handshake does not keep the server from stopping."""
    with running(drain_seconds=0.2, head_seconds=3600) as server:
        sock = socket.create_connection(("127.0.0.1", server.port), SECONDS)
        sock.sendall(b"\x16\x03\x01")
        assert server.get().startswith(b"HTTP/1.1 200 ")
    with sock:
        assert sock.recv(1) == b""
