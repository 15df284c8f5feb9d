"""A rejected peer exchanges no byte of application data, as server or as client."""

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
from tests.ra_tls.talks import CLIENT_DATA, EXCHANGES, SERVER_DATA, Endpoint, Exchange, RunExchange
from tests.ra_tls.tds import CA, VALID, client_context, server_context
from tests.verifier.platforms import intel

OTHER_APP = AppKeys.from_seed(bytes(32))  # its CA is not the clients'
every_exchange = pytest.mark.parametrize("exchange", EXCHANGES.values(), ids=EXCHANGES.keys())
every_defect = pytest.mark.parametrize("defect", tds.INVALID)


def assert_no_data(outcome: Exchange) -> None:
    """Require that neither application received data, and that the client has an error."""
    assert (outcome.server.received, outcome.client.received) == (b"", b"")
    assert outcome.client.error is not None


@every_exchange
def test_valid_peers_exchange_data(exchange: RunExchange) -> None:
    """Each side receives the other's data."""
    assert exchange(server_context(), client_context()) == Exchange(
        Endpoint(CLIENT_DATA, None), Endpoint(SERVER_DATA, None)
    )


@every_exchange
def test_server_without_verifier_accepts_any_client(exchange: RunExchange) -> None:
    """The server accepts every client, and is verified by those that check it."""
    alone = ra_tls.server_context(issued=VALID)
    assert exchange(alone, client_context(None)).client == Endpoint(SERVER_DATA, None)


@every_exchange
@every_defect
def test_invalid_server_is_rejected(exchange: RunExchange, defect: str) -> None:
    """The client sends and receives nothing, and its error has the reason."""
    outcome = exchange(server_context(tds.INVALID[defect]()), client_context())
    assert_no_data(outcome)
    error = outcome.client.error
    assert isinstance(error, PeerRefusedError)
    assert isinstance(error.__cause__, VerificationError)
    assert str(error) == f"TLS peer refused: {error.__cause__}"
    assert error.reason == error.__cause__.reason


@every_exchange
@every_defect
def test_invalid_client_is_rejected(
    exchange: RunExchange, defect: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The server's application sends and receives nothing, and the client gets an error."""
    with caplog.at_level(logging.INFO, "attestkit.ra_tls"):
        outcome = exchange(server_context(), client_context(tds.INVALID[defect]()))
    assert_no_data(outcome)
    assert not isinstance(outcome.client.error, AttestKitError), "the client rejected the server"
    if exchange is EXCHANGES["blocking"] and defect != "an expired certificate":
        assert isinstance(outcome.client.error, ConnectionResetError)
        assert "it may have refused" in str(outcome.client.error)
    # asyncio in debug mode also logs the failed transport.
    messages = [record.getMessage() for record in caplog.records if record.name != "asyncio"]
    if defect == "an expired certificate":
        assert messages == []  # handled by OpenSSL
        return
    [message] = messages
    assert message.startswith("TLS peer refused: ")
    if outcome.server.error is not None:
        assert isinstance(outcome.server.error, PeerRefusedError)


@every_exchange
def test_client_without_certificate_is_rejected(exchange: RunExchange) -> None:
    """A client without a certificate is rejected, even one that does not verify the server."""
    for context in (client_context(None), tds.blind_context()):
        outcome = exchange(server_context(), context)
        assert_no_data(outcome)


@every_exchange
def test_client_of_unknown_ca_is_rejected(exchange: RunExchange) -> None:
    """Valid evidence does not help a client whose CA is unknown to the server."""
    outcome = exchange(server_context(), client_context(tds.issue(keys=OTHER_APP)))
    assert_no_data(outcome)


@every_exchange
def test_server_of_unknown_ca_is_rejected_with_peer_ca_only(exchange: RunExchange) -> None:
    """A client checks the server's CA only if it was given one."""
    other = server_context(tds.issue(keys=OTHER_APP))
    assert exchange(other, client_context()).client == Endpoint(SERVER_DATA, None)
    strict = client_context(server_ca=CA)
    assert exchange(server_context(), strict).client == Endpoint(SERVER_DATA, None)
    outcome = exchange(other, strict)
    assert_no_data(outcome)
    assert isinstance(outcome.client.error, ssl.SSLCertVerificationError)


@every_exchange
def test_simulated_peer_without_trust_anchor_is_rejected(exchange: RunExchange) -> None:
    """A simulator is trusted only with its trust anchor."""
    by_intel = intel.verifier(trust_anchor=None)
    outcome = exchange(server_context(), client_context(verifier=by_intel))
    assert_no_data(outcome)
    assert isinstance(outcome.client.error, PeerRefusedError)
    outcome = exchange(server_context(verifier=by_intel), client_context())
    assert_no_data(outcome)


class FailingVerifier(Verifier):
    """A verifier with a bug."""

    def verify(self, *_: object, **__: object) -> NoReturn:
        """Raise an unexpected exception."""
        raise ZeroDivisionError("an internal secret")


@every_exchange
def test_unexpected_verifier_error_rejects_peer(exchange: RunExchange) -> None:
    """An unexpected exception rejects the peer, and its text is not sent."""
    outcome = exchange(server_context(), client_context(verifier=FailingVerifier()))
    assert_no_data(outcome)
    error = outcome.client.error
    assert isinstance(error, PeerRefusedError)
    assert str(error) == "TLS peer refused: verification failed (ZeroDivisionError)"
    assert error.reason == "internal"
    outcome = exchange(server_context(verifier=FailingVerifier()), client_context())
    assert_no_data(outcome)


@every_exchange
def test_tls_1_2_is_rejected(exchange: RunExchange) -> None:
    """Only TLS 1.3 is accepted."""
    old = tds.blind_context()
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    outcome = exchange(ra_tls.server_context(issued=VALID), old)
    assert_no_data(outcome)
    assert isinstance(outcome.client.error, OSError)
