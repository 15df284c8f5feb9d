"""A relay or a man in the middle between a guest and its KMS obtains no key."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, NamedTuple

import pytest

from attestkit import ra_tls
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.app_certificates import certificate_pem, issue_leaf, read_certificate
from attestkit.attester import Attester
from attestkit.attester.evidence_source import BootSource
from attestkit.backends.simulator import Simulator
from attestkit.dstack.boot_sequence import events_before_keys
from attestkit.errors import KmsError
from attestkit.keys.hkdf import derive_p256
from attestkit.kms import CertRequest, KmsClient, SimulatedKms, boot_with_kms
from attestkit.kms.https_call import SUBJECT, TimeLimits, call_kms, rooted_context
from attestkit.kms.release.roots import KmsRoots
from attestkit.kms.url import parse_kms_url
from attestkit.ra_tls.issuance import Issued
from attestkit.report_data import ReportData
from tests.kms.boot.booting import EVENTS, PREFIX, SEED, guest, kms_of, names
from tests.kms.replayed_kms import (
    WINDOW,
    ReplayedKms,
    Request,
    json_reply,
    keys_of,
    running,
    temp_ca_of,
)
from tests.kms.tcp_relay import relay_to
from tests.raising import raises

LIMITS: Final = TimeLimits(connect=5.0, call=20.0)
GENUINE: Final = KmsRoots.from_seed(SEED)
ATTACKER: Final = KmsRoots(
    ca_key=P256Key.from_scalar(b"\x41" * 32),
    k256_secret=b"\x42" * 32,
    temp_ca_key=GENUINE.temp_ca_key,  # which the KMS gives to everyone
    rpc_key=P256Key.from_scalar(b"\x43" * 32),
)
ATTACKERS_KEY: Final = P256Key.from_scalar(b"\x44" * 32)
HOST: Final = "127.0.0.1"


@pytest.fixture
def kms() -> Iterator[SimulatedKms]:
    """Return a KMS for guests of SEED."""
    with kms_of(SEED, domain=HOST) as found:
        yield found


def assert_unbooted(tee: Attester[Simulator]) -> None:
    """Check that a guest has no keys, and has measured nothing of a KMS."""
    assert names(tee) == PREFIX


# -- a relay -----------------------------------------------------------------------------------


def test_relay_passes_on_bytes_without_keys(kms: SimulatedKms) -> None:
    """A guest may reach its KMS through a relay, which sees neither keys nor methods."""
    with relay_to(kms.url) as relay, guest() as tee:
        boot_with_kms(tee, relay.url, roots=[kms.root])
        assert names(tee) == EVENTS
        keys = tee.backend.app_keys
        secrets = [keys.disk_crypt_key, keys.env_crypt_key, keys.k256_key]
    seen = bytes(relay.recorded)
    assert relay.connections == 2
    assert len(seen) > 10_000  # with evidence and its certificate
    for plain in [
        *secrets,
        *(secret.hex().encode() for secret in secrets),
        SUBJECT.encode(),
        b"GetAppKey",
        b"HTTP/1",
    ]:
        assert plain not in seen


@pytest.mark.parametrize("connection", [0, 1])
def test_relay_that_changes_a_byte_is_noticed(kms: SimulatedKms, connection: int) -> None:
    """TLS authenticates all bytes also of the connection whose server is not verified."""

    def alter(number: int, data: bytes) -> bytes:
        return data[:-1] + bytes([data[-1] ^ 1]) if number == connection else data

    with relay_to(kms.url, alter) as relay, guest() as tee:
        with raises(KmsError, "connection"):
            boot_with_kms(tee, relay.url, roots=[kms.root], limits=LIMITS)
        assert_unbooted(tee)


# -- a man in the middle who terminates TLS ----------------------------------------------------


def temp_ca_answer(kms: SimulatedKms, **changes: object) -> dict[str, Any]:
    """Return the genuine answer to GetTempCaCert, with changes."""
    known = {
        "temp_ca_cert": temp_ca_of(GENUINE)["temp_ca_cert"],
        "temp_ca_key": GENUINE.temp_ca_key.pkcs8_pem,
        "ca_cert": kms.root_cert,
    }
    return {**known, **changes}


@contextmanager
def intercepting(**answers: dict[str, Any]) -> Iterator[ReplayedKms]:
    """Run a server of the attacker, who answers with keys of his own."""
    known = {"GetTempCaCert": temp_ca_of(ATTACKER), "GetAppKey": keys_of(ATTACKER), **answers}

    def respond(request: Request) -> tuple[int, bytes]:
        return json_reply(known[request.method])

    with running(ATTACKER, respond, domain=HOST) as server:
        yield server


def methods(server: ReplayedKms) -> list[str]:
    """Return the names of the methods that a server has received."""
    return [request.method for request in server.requests]


def test_own_root_is_refused_at_the_pin(kms: SimulatedKms) -> None:
    """The attacker's consistent KMS fails before a second connection is made."""
    with intercepting() as server, guest() as tee:
        with raises(KmsError, "wrong_root"):
            boot_with_kms(tee, server.url, roots=[kms.root])
        assert (methods(server), server.refused) == (["GetTempCaCert"], [])
        assert_unbooted(tee)


def test_genuine_root_with_own_server_is_refused_in_the_handshake(kms: SimulatedKms) -> None:
    """The pinned root did not certify the attacker's server; nothing is sent to it."""
    with intercepting(GetTempCaCert=temp_ca_answer(kms)) as server, guest() as tee:
        with raises(KmsError, "wrong_certificate"):
            boot_with_kms(tee, server.url, roots=[kms.root])
        assert_unbooted(tee)
    assert methods(server) == ["GetTempCaCert"]


def test_root_of_the_same_name_is_refused(kms: SimulatedKms) -> None:
    """Subject and validity do not matter; the pin is of the key."""
    roots = KmsRoots(
        ca_key=P256Key.from_scalar(b"\x45" * 32),
        k256_secret=GENUINE.k256_key.public_key[1:],  # any scalar
        temp_ca_key=GENUINE.temp_ca_key,
        rpc_key=GENUINE.rpc_key,
    )
    with intercepting(GetTempCaCert=temp_ca_of(roots)) as server, guest() as tee:
        with raises(KmsError, "wrong_root"):
            boot_with_kms(tee, server.url, roots=[kms.root])
        assert methods(server) == ["GetTempCaCert"]


def test_own_temporary_ca_gets_no_keys(kms: SimulatedKms) -> None:
    """A certificate of the attacker's temporary CA is refused by the KMS itself."""
    other = P256Key.from_scalar(b"\x46" * 32)
    roots = KmsRoots(
        ca_key=ATTACKER.ca_key,
        k256_secret=b"\x42" * 32,
        temp_ca_key=other,
        rpc_key=ATTACKER.rpc_key,
    )
    changed = temp_ca_of(roots, ca_cert=kms.root_cert)
    with intercepting(GetTempCaCert=changed) as server, relay_to(server.url) as relay:
        relay.ports.append(int(kms.url.rpartition(":")[2]))  # the second connection: to the KMS
        with guest() as tee:
            with raises(KmsError, "connection"):
                boot_with_kms(tee, relay.url, roots=[kms.root], limits=LIMITS)
            assert_unbooted(tee)
        assert (methods(server), relay.connections) == (["GetTempCaCert"], 2)


def test_certificate_of_another_app_is_refused(kms: SimulatedKms) -> None:
    """An app of the same KMS can have a certificate for any host, but not the KMS's usage."""
    with guest(app_id=b"\5" * 20) as other:
        boot_with_kms(other, kms.url, roots=[kms.root])
        bound = ReportData.bind(ReportData.RATLS_CERT, ATTACKERS_KEY.spki_der)
        request = CertRequest(
            pubkey=ATTACKERS_KEY.spki_der,
            subject=HOST,
            evidence=other.attest(report_data=bound),
            subject_alt_names=(HOST,),
            usage_server_auth=True,
        )
        chain = KmsClient(kms.url, roots=[kms.root]).sign_certificate(request, ATTACKERS_KEY)
    with intercepting(GetTempCaCert=temp_ca_answer(kms)) as server, guest() as tee:
        server.present(Issued(ATTACKERS_KEY.pkcs8_pem, chain[:2]))
        with raises(KmsError, "wrong_usage"):
            boot_with_kms(tee, server.url, roots=[kms.root])
        assert methods(server) == ["GetTempCaCert"]
        assert_unbooted(tee)


# -- a captured certificate ------------------------------------------------------------------------


class Captured(NamedTuple):
    """Requests of a guest that trusts any KMS to the attacker, and the key that it keeps."""

    certificate: bytes  # DER
    key: P256Key


@pytest.fixture
def captured() -> Captured:
    """Return the certificate of a guest without a pin that requests its keys from the attacker."""

    def random(size: int) -> bytes:
        return b"\x47" * size

    with intercepting() as server, guest() as tee:
        assert isinstance(tee.evidence_source, BootSource)
        tee.evidence_source.continue_boot(events_before_keys(tee.backend.launch()))
        client = KmsClient(server.url, roots="first-use", attester=tee, random=random)
        with pytest.raises(KmsError):
            client.get_app_keys()
    assert methods(server) == ["GetTempCaCert", "GetAppKey"]
    certificate = server.requests[-1].certificate
    assert certificate is not None
    return Captured(certificate, derive_p256(random(32)))


def request_keys(kms: SimulatedKms, certificate: bytes, key_pem: str) -> dict[str, Any]:
    """Request keys from the KMS with a certificate."""
    issued = Issued(key_pem, (certificate_pem(certificate),))
    context = rooted_context(read_certificate(kms.root_cert), issued)
    arguments = {"api_version": 1, "vm_config": ""}
    url = parse_kms_url(kms.url)
    answer = call_kms(url, "GetAppKey", arguments, context, limits=LIMITS)
    found: dict[str, Any] = json.loads(answer)
    return found


def test_captured_certificate_with_its_key_gets_keys(kms: SimulatedKms, captured: Captured) -> None:
    """It is complete: only the key is missing to the attacker in the next tests."""
    assert request_keys(kms, captured.certificate, captured.key.pkcs8_pem)["k256_key"]


def test_captured_certificate_without_its_key_is_refused(
    kms: SimulatedKms, captured: Captured
) -> None:
    """The signature of the handshake is by another key, so the KMS ends the handshake."""
    # A file with the public key of the certificate and the private key of the attacker, which
    # OpenSSL takes for a pair.
    own, victims = (key.spki_der[-65:] for key in (ATTACKERS_KEY, captured.key))
    forged = bytes(ATTACKERS_KEY.pkcs8_der).replace(own, victims)
    with raises(KmsError, "connection"):
        request_keys(kms, captured.certificate, encode_pem("PRIVATE KEY", forged))


def test_captured_evidence_in_an_own_certificate_is_refused(
    kms: SimulatedKms, captured: Captured
) -> None:
    """The temporary CA signs for everyone, but the evidence is over the key of the guest."""
    evidence = read_certificate(captured.certificate).content(ra_tls.OID_ATTESTATION)
    assert evidence is not None
    leaf = issue_leaf(
        public_key=ATTACKERS_KEY,
        subject=SUBJECT,
        extensions=[(ra_tls.OID_ATTESTATION, evidence)],
        ca_cert=temp_ca_of(GENUINE)["temp_ca_cert"],
        ca_key=GENUINE.temp_ca_key,
        not_before=WINDOW.not_before,
        not_after=WINDOW.not_after,
    )
    with raises(KmsError, "refused", part="report data"):
        request_keys(kms, leaf, ATTACKERS_KEY.pkcs8_pem)
