"""TLS in memory as event loops use it, sessions, and the peer result of a connection."""

import pickle
import ssl
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from attestkit import ra_tls
from attestkit.errors import AttestKitError, CollateralError, UsageError
from attestkit.ra_tls import PeerRefusedError
from attestkit.verifier import AttestationResult, Verifier
from tests.ra_tls import tds
from tests.ra_tls.talks import TIMEOUT, MemoryPair, connect_tcp, connected
from tests.ra_tls.tds import VALID, client_context, server_context
from tests.raising import raises
from tests.verifier.platforms import intel

DEBUG = tds.issue(tds.attest_debug)


@pytest.mark.parametrize("use", [lambda end: end.read(6), lambda end: end.write(b"secret")])
def test_first_use_in_memory_verifies(use: Callable[[ssl.SSLObject], object]) -> None:
    """Reading and writing first perform handshake and verification."""
    pair = MemoryPair(server_context(DEBUG), client_context())
    with pytest.raises(ssl.SSLWantReadError):
        use(pair.client)
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.do_handshake()
    for _ in range(2):
        with pytest.raises(PeerRefusedError):
            use(pair.client)
    with pytest.raises(UsageError):
        ra_tls.peer(pair.client)


def test_early_data_of_invalid_client_is_not_read() -> None:
    """Data sent together with the end of the handshake is not returned."""
    pair = MemoryPair(server_context(), client_context(DEBUG))
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.do_handshake()
    assert pair.client.write(b"secret") == 6
    for _ in range(2):
        with pytest.raises(PeerRefusedError):
            pair.server.read(6)


def test_memory_pair_exchanges_data() -> None:
    """Both sides have the peer result and exchange data."""
    pair = MemoryPair(server_context(), client_context())
    pair.handshake()
    assert ra_tls.peer(pair.client) == ra_tls.peer(pair.server)
    pair.client.write(b"secret")
    buffer = bytearray(8)
    pair.server.read(6, buffer)
    assert buffer == b"secret\0\0"


class FailingOnceVerifier(Verifier):
    """A verifier that finds no collateral at first."""

    calls = 0

    def verify(self, *evidence: Any, **options: Any) -> AttestationResult:
        """Fail once, then verify."""
        self.calls += 1
        if self.calls == 1:
            raise CollateralError("PCCS unreachable", reason="fetch_failed")
        return intel.verifier().verify(*evidence, **options)


def test_rejection_is_permanent_for_connection() -> None:
    """A rejected peer is verified again on a new connection only."""
    verifier = FailingOnceVerifier()
    context = client_context(verifier=verifier)
    pair = MemoryPair(server_context(), context)
    with raises(PeerRefusedError, "fetch_failed"):
        pair.handshake()
    for use in (pair.client.do_handshake, pair.client.read, lambda: pair.client.write(b"secret")):
        with raises(PeerRefusedError, "fetch_failed"):
            use()
    assert verifier.calls == 1
    MemoryPair(server_context(), context).handshake()
    assert verifier.calls == 2


# -- sessions ------------------------------------------------------------------------------------


def test_server_sends_no_session_ticket() -> None:
    """Every connection presents a certificate, so no session can be resumed."""
    with connected(ra_tls.server_context(issued=VALID), tds.blind_context()) as (client, future):
        future.result(TIMEOUT).sendall(b"answer")
        assert client.recv(6) == b"answer"  # a ticket would have arrived before
        assert client.session is None or not client.session.has_ticket


def test_client_rejects_resumed_session() -> None:
    """A resumed session presents no certificate and is rejected."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write("".join((VALID.key_pem, *VALID.certificate_chain)).encode())
        file.flush()
        server.load_cert_chain(file.name)
    client = client_context()
    with connected(server, client) as (connection, future):
        future.result(TIMEOUT).sendall(b"answer")
        assert connection.recv(6) == b"answer"
        session = connection.session
        assert session is not None
        assert session.has_ticket
    server_socket, client_socket = connect_tcp()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(server.wrap_socket, server_socket, server_side=True)
        with raises(PeerRefusedError, "session_reused"):
            client.wrap_socket(client_socket, session=session)
        with future.result(TIMEOUT) as other:
            assert other.session_reused  # the session was resumed


def test_memory_connection_keeps_verified_certificate() -> None:
    """The verified certificate remains the connection's certificate."""
    pair = MemoryPair(server_context(), client_context())
    pair.handshake()
    for end in (pair.client, pair.server):
        with raises(UsageError, "not_applicable"):
            end.verify_client_post_handshake()


# -- peer result ----------------------------------------------------------------------------------


def test_peer_of_other_connection_fails() -> None:
    """Other connections and other objects have no result."""
    pair = MemoryPair(ra_tls.server_context(issued=VALID), client_context())
    pair.handshake()
    for other in (pair.server, None, object(), ssl):
        with raises(UsageError, "not_applicable"):
            ra_tls.peer(other)
    assert ra_tls.peer(pair.client).simulated


def test_peer_refused_error_is_ssl_error_and_pickles() -> None:
    """The error is an AttestKitError and an SSLError, and keeps its fields when pickled."""
    pair = MemoryPair(server_context(DEBUG), client_context())
    with raises(PeerRefusedError, "td_debug", library="attestkit") as caught:
        pair.handshake()
    error = caught.value
    assert isinstance(error, AttestKitError)
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert error.errno == ssl.SSL_ERROR_SSL
    assert error.verify_message in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reason) == (str(error), error.reason)
    assert (again.errno, again.args) == (error.errno, error.args)
    assert (again.verify_code, again.verify_message) == (50, error.verify_message)
