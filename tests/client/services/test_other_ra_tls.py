"""Servers with certificates of other makers: the service, and an endpoint for one."""

import hashlib
import ssl
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives import serialization

import attestkit
from attestkit import AppraisalPolicy, Require
from attestkit._crypto.pem import encode_pem, split_pem
from attestkit.client.services.ra_tls import OtherRaTls
from attestkit.client.wire.observed_peer import ObservedPeer, read_spki
from attestkit.errors import FormatError, ServiceError, VerificationError
from attestkit.ra_tls import PeerRefusedError
from attestkit.ra_tls.interoperable_certificates import read_interoperable
from attestkit.serve.event_loop_thread import EventLoopThread
from attestkit.testing import SimulatedTee
from attestkit.testing.attested_server import echo
from attestkit.testing.tls_listener import ADDRESS, TlsListener
from tests.ra_tls.other_maker import (
    GRAMINE,
    INTEROPERABLE,
    KEY,
    SPKI,
    certificate,
    claims,
    report_data,
    tagged,
)
from tests.raising import raises
from tests.vectors import data, needs_shared

FRESHNESS = Require(freshness="key possession")
END: Final = datetime.now(timezone.utc).replace(microsecond=0) + timedelta(minutes=50)


def read(der: bytes, spki: bytes | None = None) -> Any:
    """Return the claims of a peer with a certificate."""
    peer = ObservedPeer("host", 443, der, read_spki(der) if spki is None else spki)
    return OtherRaTls().read((), bytes(32), peer, None)


@needs_shared
@pytest.mark.parametrize("name", ["gramine", "rats-tls"])
def test_captured_certificates_are_claims(name: str) -> None:
    """The claims have the quote, its report data, and the key of the handshake."""
    der = split_pem(data(f"services/ra-tls/{name}-cert.pem").decode())[0]
    found = read(der)
    [machine], [binding] = found.machines, found.bindings
    assert attestkit.Quote.parse(machine.evidence).report_data == machine.report_data
    assert (binding.kind, binding.key) == ("ra-tls", hashlib.sha256(read_spki(der)).digest())
    assert found.freshness == "key possession"
    assert found.valid_until == read_interoperable(der).valid_until


def test_other_key_and_missing_peer_are_refused() -> None:
    """The certificate is that of the connection."""
    der = certificate((INTEROPERABLE, tagged(b"quote", claims())))
    assert read(der).machines[0].evidence == b"quote"
    with pytest.raises(ServiceError) as caught:
        read(der, b"other")
    assert caught.value.reason == "other_key"
    with pytest.raises(ServiceError) as caught:
        OtherRaTls().read((), bytes(32), None, None)
    assert caught.value.reason == "no_attestation"
    with pytest.raises(VerificationError) as refused:
        read(certificate())
    assert refused.value.reason == "no_evidence"
    assert OtherRaTls().questions(bytes(32), None) == ()
    assert not OtherRaTls().recognizes("host")


def test_older_form_of_gramine_has_a_quote_of_sgx() -> None:
    """A TD whose program attests any 32 bytes cannot be made an enclave of Gramine."""
    with SimulatedTee(platform="tdx") as tee:
        quote = tee.raw_quote(hashlib.sha256(SPKI).digest())
    with pytest.raises(FormatError) as caught:
        read(certificate((GRAMINE, quote)))
    assert caught.value.reason == "unsupported"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[SimulatedTee, str]]:
    """Provide a server with such a certificate: its TEE, and its URL."""
    pytest.importorskip("uvicorn")
    thread = EventLoopThread()
    with SimulatedTee(platform="tdx") as tee:
        buffer = claims()
        quote = tee.raw_quote(report_data(buffer))
        der = certificate((INTEROPERABLE, tagged(quote, buffer)), end=END)
        file = tmp_path / "leaf.pem"
        private = KEY.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        file.write_text(private.decode() + encode_pem("CERTIFICATE", der))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        listener = TlsListener(echo, context, thread)
        try:
            yield tee, f"https://{ADDRESS}:{listener.port}"
        finally:
            listener.close()
            thread.close()


def verifier_of(tee: SimulatedTee) -> Any:
    """Return a verifier that pins a TEE's measurements."""
    result = tee.verify(tee.raw_quote(), report_data=None)
    return tee.verifier(policy=AppraisalPolicy.from_evidence(result))


def test_endpoint_for_such_a_server(served: tuple[SimulatedTee, str]) -> None:
    """The handshake proves it, and requests go to its key."""
    tee, url = served
    options: Any = {"service": "ra-tls-other", "require": FRESHNESS}
    with attestkit.connect(url, policy=verifier_of(tee), **options) as endpoint:
        assert [one.kind for one in endpoint.proof.bindings] == ["ra-tls"]
        with endpoint.client() as client:
            assert client.post(f"{url}/echo", content=b"body").content == b"body"
    with pytest.raises(PeerRefusedError) as caught:
        attestkit.connect(url, policy=verifier_of(tee), service="ra-tls-other")
    assert caught.value.reason == "no_freshness"


def test_proof_ends_with_the_certificate(served: tuple[SimulatedTee, str]) -> None:
    """A key counts no longer than its certificate; an expired one is refused."""
    tee, url = served
    options: Any = {"service": "ra-tls-other", "require": FRESHNESS}
    with attestkit.connect(url, policy=verifier_of(tee), **options) as endpoint:
        assert endpoint.proof.valid_until == END
    later = END + timedelta(seconds=1)
    with raises(PeerRefusedError, "document_expired"):
        attestkit.connect(url, policy=verifier_of(tee), now=lambda: later, **options)


def test_such_a_server_is_not_guessed(served: tuple[SimulatedTee, str]) -> None:
    """Evidence without a label is accepted only where the caller asks for it."""
    tee, url = served
    policy = verifier_of(tee)
    with raises(ServiceError, "unknown_service", part='service="ra-tls-other"'):
        attestkit.connect(url, policy=policy, require=FRESHNESS)
    with raises(PeerRefusedError, "syntax"):  # the signature algorithm has parameters
        attestkit.connect(url, policy=policy, service="ra-tls", require=FRESHNESS)
