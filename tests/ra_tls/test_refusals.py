"""Whoever is not accepted is refused before a byte of application data, whichever side it is."""

import logging
import ssl
from typing import NoReturn

import pytest

from attestkit import ra_tls
from attestkit.errors import AttestKitError, VerificationError
from attestkit.keys import AppKeys
from attestkit.ra_tls import PeerRefusedError
from attestkit.verifier import Verifier
from tests.ra_tls import tds
from tests.ra_tls.talks import CLIENT_SAYS, SERVER_SAYS, TALKERS, Side, Talk, Talker
from tests.ra_tls.tds import CA
from tests.verifier import parcels

GOOD = tds.issued()
OTHER_APP = AppKeys.from_seed(bytes(32))  # its authority is not the clients'
talkers = pytest.mark.parametrize("talk", TALKERS.values(), ids=TALKERS.keys())
unsound = pytest.mark.parametrize("what", tds.UNSOUND)


def server(issued: ra_tls.Issued = GOOD, verifier: Verifier | None = None) -> ssl.SSLContext:
    """Return the context of a server that asks its clients for evidence."""
    verifier = verifier or parcels.verifier()
    return ra_tls.server_context(verifier, issued=issued, peer_ca=CA)


def client(issued: ra_tls.Issued | None = GOOD, verifier: Verifier | None = None) -> ssl.SSLContext:
    """Return the context of a client with evidence."""
    return ra_tls.client_context(verifier or parcels.verifier(), issued=issued)


@talkers
def test_two_sound_sides_talk(talk: Talker) -> None:
    """Each sees what the other says."""
    assert talk(server(), client()) == Talk(Side(CLIENT_SAYS, None), Side(SERVER_SAYS, None))


@talkers
def test_an_attested_server_and_anybody(talk: Talker) -> None:
    """A server without a verifier takes every client, and proves itself to those who ask."""
    alone = ra_tls.server_context(issued=GOOD)
    assert talk(alone, client(None)).client == Side(SERVER_SAYS, None)


@talkers
@unsound
def test_an_unsound_server(talk: Talker, what: str) -> None:
    """The client says nothing and hears nothing, and its error tells why."""
    outcome = talk(server(tds.UNSOUND[what]()), client())
    assert (outcome.server.saw, outcome.client.saw) == (b"", b"")
    error = outcome.client.error
    assert isinstance(error, PeerRefusedError)
    assert isinstance(error.__cause__, VerificationError)
    assert str(error) == f"the TLS peer is refused: {error.__cause__}"
    assert error.reason == error.__cause__.reason


@talkers
@unsound
def test_an_unsound_client(talk: Talker, what: str, caplog: pytest.LogCaptureFixture) -> None:
    """The server's application says nothing and hears nothing, and the client gets an error."""
    with caplog.at_level(logging.INFO, "attestkit.ra_tls"):
        outcome = talk(server(), client(tds.UNSOUND[what]()))
    assert (outcome.server.saw, outcome.client.saw) == (b"", b"")
    assert outcome.client.error is not None
    assert not isinstance(outcome.client.error, AttestKitError), "the client was to be refused"
    if talk is TALKERS["blocking"] and what != "an expired certificate":
        assert isinstance(outcome.client.error, ConnectionResetError)
        assert "it may have refused us" in str(outcome.client.error)
    # asyncio in debug mode logs, too, that a transport was not made.
    ours = [told.getMessage() for told in caplog.records if told.name != "asyncio"]
    if what == "an expired certificate":
        assert ours == []  # OpenSSL has seen to it
        return
    [told] = ours
    assert told.startswith("TLS peer refused: ")
    if outcome.server.error is not None:
        assert isinstance(outcome.server.error, PeerRefusedError)


@talkers
def test_both_unsound(talk: Talker) -> None:
    """Two that cannot be believed do not talk."""
    outcome = talk(server(tds.issued(tds.debug)), client(tds.issued(tds.debug)))
    assert (outcome.server.saw, outcome.client.saw) == (b"", b"")


@talkers
def test_a_client_without_a_certificate(talk: Talker) -> None:
    """A client that shows no certificate is refused, also one that does not look at the server."""
    blind = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    blind.check_hostname, blind.verify_mode = False, ssl.CERT_NONE
    for context in (client(None), blind):
        outcome = talk(server(), context)
        assert (outcome.server.saw, outcome.client.saw) == (b"", b"")
        assert outcome.client.error is not None


@talkers
def test_a_client_of_another_authority(talk: Talker) -> None:
    """Sound evidence does not help a client whose authority the server does not know."""
    outcome = talk(server(), client(tds.issued(keys=OTHER_APP)))
    assert (outcome.server.saw, outcome.client.saw) == (b"", b"")
    assert outcome.client.error is not None


@talkers
def test_a_server_of_another_authority(talk: Talker) -> None:
    """A client does not care, unless it was told to."""
    other = server(tds.issued(keys=OTHER_APP))
    assert talk(other, client()).client == Side(SERVER_SAYS, None)
    strict = ra_tls.client_context(parcels.verifier(), issued=GOOD, server_ca=CA)
    assert talk(server(), strict).client == Side(SERVER_SAYS, None)
    outcome = talk(other, strict)
    assert (outcome.server.saw, outcome.client.saw) == (b"", b"")
    assert isinstance(outcome.client.error, ssl.SSLCertVerificationError)


@talkers
def test_a_verifier_without_the_simulators_root(talk: Talker) -> None:
    """Unless somebody trusts it by name, a simulator is nobody."""
    by_intel = parcels.verifier(trust_anchor=None)
    outcome = talk(server(), client(verifier=by_intel))
    assert (outcome.server.saw, outcome.client.saw) == (b"", b"")
    assert isinstance(outcome.client.error, PeerRefusedError)
    outcome = talk(server(verifier=by_intel), client())
    assert (outcome.server.saw, outcome.client.saw) == (b"", b"")
    assert outcome.client.error is not None


class Broken(Verifier):
    """A verifier with a mistake in it."""

    def verify(self, *_: object, **__: object) -> NoReturn:
        """Fail in no way that anybody has foreseen."""
        raise ZeroDivisionError("the secret of a stranger")


@talkers
def test_a_broken_verifier_accepts_nobody(talk: Talker) -> None:
    """An exception that nobody expected is a refusal, and its text stays here."""
    outcome = talk(server(), client(verifier=Broken()))
    assert (outcome.server.saw, outcome.client.saw) == (b"", b"")
    error = outcome.client.error
    assert isinstance(error, PeerRefusedError)
    assert str(error) == "the TLS peer is refused: the check failed (ZeroDivisionError)"
    assert error.reason == "internal"
    outcome = talk(server(verifier=Broken()), client())
    assert (outcome.server.saw, outcome.client.saw) == (b"", b"")
    assert outcome.client.error is not None


@talkers
def test_older_tls_is_refused(talk: Talker) -> None:
    """TLS 1.2 is spoken with nobody."""
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    outcome = talk(ra_tls.server_context(issued=GOOD), old)
    assert (outcome.server.saw, outcome.client.saw) == (b"", b"")
    assert isinstance(outcome.client.error, OSError)
