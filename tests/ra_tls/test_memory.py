"""TLS in memory as event loops use it, sessions, and what a connection says of its peer."""

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
from tests.ra_tls.talks import PATIENCE, connected
from tests.verifier import parcels

GOOD = tds.issued()
DEBUG = tds.issued(tds.debug)


def server(issued: ra_tls.Issued = GOOD) -> ssl.SSLContext:
    """Return the context of a server that asks its clients for evidence."""
    return ra_tls.server_context(parcels.verifier(), issued=issued, peer_ca=tds.CA)


def client(issued: ra_tls.Issued = GOOD) -> ssl.SSLContext:
    """Return the context of a client with evidence."""
    return ra_tls.client_context(parcels.verifier(), issued=issued)


class Memory:
    """A client and a server whose bytes the test carries."""

    def __init__(self, theirs: ssl.SSLContext, ours: ssl.SSLContext) -> None:
        up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = theirs.wrap_bio(up, down, server_side=True)
        self.client = ours.wrap_bio(down, up)

    def handshake(self) -> None:
        """Shake hands until both are through, or one refuses."""
        waiting: list[ssl.SSLObject] = [self.client, self.server]
        while waiting:
            for end in list(waiting):
                try:
                    end.do_handshake()
                except ssl.SSLWantReadError:
                    continue
                waiting.remove(end)


@pytest.mark.parametrize("use", [lambda end: end.read(6), lambda end: end.write(b"secret")])
def test_the_first_use_in_memory_checks(use: Callable[[ssl.SSLObject], object]) -> None:
    """Reading and writing are a handshake first, then a check, then themselves."""
    pair = Memory(server(DEBUG), client())
    with pytest.raises(ssl.SSLWantReadError):
        use(pair.client)
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.do_handshake()
    for _ in range(2):
        with pytest.raises(PeerRefusedError):
            use(pair.client)
    with pytest.raises(UsageError):
        ra_tls.peer(pair.client)


def test_early_data_of_an_unsound_client_is_not_read() -> None:
    """What a client sends along with the end of its handshake stays unread."""
    pair = Memory(server(), client(DEBUG))
    with pytest.raises(ssl.SSLWantReadError):
        pair.client.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        pair.server.do_handshake()
    assert pair.client.write(b"secret") == 6
    for _ in range(2):
        with pytest.raises(PeerRefusedError):
            pair.server.read(6)


def test_a_sound_pair_in_memory() -> None:
    """Both know each other, and talk."""
    pair = Memory(server(), client())
    pair.handshake()
    assert ra_tls.peer(pair.client) == ra_tls.peer(pair.server)
    pair.client.write(b"secret")
    buffer = bytearray(8)
    pair.server.read(6, buffer)
    assert buffer == b"secret\0\0"


class Wavering(Verifier):
    """A verifier that finds no collateral at first."""

    asked = 0

    def verify(self, *evidence: Any, **options: Any) -> AttestationResult:
        """Fail once, then judge."""
        self.asked += 1
        if self.asked == 1:
            raise CollateralError("the PCCS is not there")
        return parcels.verifier().verify(*evidence, **options)


def test_a_refusal_is_for_good() -> None:
    """Who was refused is not judged again on this connection, but on another one."""
    verifier = Wavering()
    context = ra_tls.client_context(verifier, issued=GOOD)
    pair = Memory(server(), context)
    with pytest.raises(PeerRefusedError, match="PCCS"):
        pair.handshake()
    for use in (pair.client.do_handshake, pair.client.read, lambda: pair.client.write(b"secret")):
        with pytest.raises(PeerRefusedError, match="PCCS"):
            use()
    assert verifier.asked == 1
    Memory(server(), context).handshake()
    assert verifier.asked == 2


# -- sessions ------------------------------------------------------------------------------------


def test_our_servers_give_no_tickets() -> None:
    """Every connection shows a certificate: there is nothing to resume."""
    plain = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    plain.check_hostname, plain.verify_mode = False, ssl.CERT_NONE
    there, here = connected()
    context = ra_tls.server_context(issued=GOOD)
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(context.wrap_socket, there, server_side=True)
        with plain.wrap_socket(here) as ours, future.result(PATIENCE) as theirs:
            theirs.sendall(b"answer")
            assert ours.recv(6) == b"answer"  # a ticket would have come before
            assert ours.session is None or not ours.session.has_ticket


def test_a_resumed_session_is_refused() -> None:
    """A server that gives tickets is not believed by what it showed another time."""
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with tempfile.NamedTemporaryFile() as file:
        file.write("".join((GOOD.key_pem, *GOOD.certificate_chain)).encode())
        file.flush()
        theirs.load_cert_chain(file.name)
    ours = client()
    first, second = connected(), connected()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(theirs.wrap_socket, first[0], server_side=True)
        with ours.wrap_socket(first[1]) as connection, future.result(PATIENCE) as other:
            other.sendall(b"answer")
            assert connection.recv(6) == b"answer"
            session = connection.session
            assert session is not None
            assert session.has_ticket
        future = pool.submit(theirs.wrap_socket, second[0], server_side=True)
        with pytest.raises(PeerRefusedError) as caught:
            ours.wrap_socket(second[1], session=session)
        assert caught.value.reason == "session_reused"
        with future.result(PATIENCE) as other:
            assert other.session_reused  # so it was one


def test_no_other_certificate_later() -> None:
    """The certificate that was judged stays the one of the connection."""
    pair = Memory(server(), client())
    pair.handshake()
    for end in (pair.client, pair.server):
        with pytest.raises(UsageError):
            end.verify_client_post_handshake()


# -- who it is -----------------------------------------------------------------------------------


def test_whom_nobody_was_asked_about() -> None:
    """Other connections, and what is no connection, have no result."""
    pair = Memory(ra_tls.server_context(issued=GOOD), client())
    pair.handshake()
    for other in (pair.server, None, object(), ssl):
        with pytest.raises(UsageError):
            ra_tls.peer(other)
    assert ra_tls.peer(pair.client).simulated


def test_the_error_is_everybodys() -> None:
    """It is ours and ssl's, and goes to other processes with its fields."""
    pair = Memory(server(DEBUG), client())
    with pytest.raises(PeerRefusedError) as caught:
        pair.handshake()
    error = caught.value
    assert isinstance(error, AttestKitError)
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert error.errno == ssl.SSL_ERROR_SSL
    assert error.verify_message in str(error)
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.reason) == (str(error), error.reason)
