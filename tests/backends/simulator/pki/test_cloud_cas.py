"""Certificates of simulated clouds, under the root of the simulated machine."""

from datetime import datetime, timedelta, timezone
from functools import cache

import cbor2
import pytest
from cryptography import x509

from attestkit._crypto.key_pairs import RsaKey
from attestkit._crypto.p384 import p384_verify
from attestkit._crypto.x509.ak_certificates.gce_extension import read_gce_extension
from attestkit._crypto.x509.ak_certificates.path import find_ak_path
from attestkit._crypto.x509.cert_path import check_path, read_path_certificate
from attestkit._crypto.x509.names import certificate_subject
from attestkit._crypto.x509.simulated.certificate_encoder import Issuer, SigningKey
from attestkit._crypto.x509.simulated.cloud_certificates import (
    SIMULATED_MARK,
    encode_name,
    issue_cloud_authority,
)
from attestkit.attestation.nitro_tpm import DocumentRequest
from attestkit.backends.simulator.pki.cloud_pki import (
    INSTANCE,
    VALIDITY,
    CloudRoot,
    NitroCa,
    issue_azure_certificate,
    issue_google_certificate,
    make_nitro_root,
    p256_key,
    p384_key,
)
from attestkit.backends.simulator.pki.intel_pki import derive

NOW = datetime(2026, 12, 1, tzinfo=timezone.utc)
ISSUED_FOR_TPMS = frozenset({"2.23.133.8.1", "2.23.133.8.3"})


def secrets(label: str, length: int) -> bytes:
    """Return bytes derived from a fixed seed."""
    return derive(bytes(32), label, length)


@cache
def root(kind: str) -> CloudRoot:
    """Return a root with a key of each kind that a simulated machine's root may have."""
    key: SigningKey
    if kind == "rsa":
        key = RsaKey(bytes(32))
    else:
        key = p256_key(secrets, "root") if kind == "p256" else p384_key(secrets, "root")
    authority = Issuer(encode_name(CN=f"root {kind}", O="attestkit"), key)
    der = issue_cloud_authority(authority, authority, serial=1, validity=VALIDITY, path_length=1)
    return CloudRoot(authority, der)


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa"])
def test_google_certificate_leads_to_the_root_and_names_the_instance(kind: str) -> None:
    """An AK certificate has a valid path, and the instance is that of Google's extension."""
    spki = p256_key(secrets, "ak").spki_der
    leaf = read_path_certificate(issue_google_certificate(root(kind), spki, secrets))
    path = find_ak_path(leaf, [], [("root", read_path_certificate(root(kind).der))], NOW)
    assert path.leaf.spki == spki
    assert read_gce_extension(leaf.extensions) == INSTANCE


def test_azure_certificate_leads_to_the_root_and_names_the_vm() -> None:
    """An AK certificate has a valid path for both usages of Azure's CAs."""
    spki = p256_key(secrets, "ak").spki_der
    der = issue_azure_certificate(root("rsa"), spki, "vm-1.TrustedVM.Azure.windows.net", secrets)
    path = find_ak_path(
        read_path_certificate(der),
        [],
        [("root", read_path_certificate(root("rsa").der))],
        NOW,
        usages=ISSUED_FOR_TPMS,
    )
    assert path.leaf.spki == spki
    subject = x509.load_der_x509_certificate(der).subject.rfc4514_string()
    assert subject == f"O={SIMULATED_MARK},CN=vm-1.TrustedVM.Azure.windows.net"


def test_certificates_of_equal_seeds_are_equal() -> None:
    """Signatures are deterministic, so a seed gives the same certificates."""
    spki = p256_key(secrets, "ak").spki_der
    first, second = (issue_google_certificate(root("rsa"), spki, secrets) for _ in "ab")
    assert first == second


def test_subject_of_certificate_is_read() -> None:
    """`certificate_subject` returns the name with which a CA was issued."""
    assert certificate_subject(root("p256").der) == root("p256").authority.name


def test_nitro_document_is_signed_under_its_chain() -> None:
    """The chain leads from the root to the document's key, and the signature is valid."""
    nitro_root = make_nitro_root(secrets)
    ca = NitroCa(nitro_root, secrets, NOW.timestamp)
    pcrs = {index: bytes([index]) * 48 for index in range(24)}
    document = ca.document("i-0-tpm0", pcrs, DocumentRequest(user_data=b"data"))
    protected, unprotected, payload, signature = cbor2.loads(document)
    fields = cbor2.loads(payload)
    assert (payload[:1], unprotected, fields["nitrotpm_pcrs"]) == (b"\xbf", {}, pcrs)
    assert (fields["user_data"], fields["nonce"]) == (b"data", None)
    chain = [fields["certificate"], *reversed(fields["cabundle"])]
    assert chain[-1] == nitro_root.der
    check_path([(str(at), read_path_certificate(der)) for at, der in enumerate(chain)], NOW)
    signed = cbor2.dumps(["Signature1", protected, b"", payload])
    p384_verify(read_path_certificate(chain[0]).spki, signature, signed)
    assert max(map(len, chain)) <= 1024


def test_nitro_document_with_old_certificates_has_expired_ones() -> None:
    """The certificates of a document are valid for hours."""
    ca = NitroCa(make_nitro_root(secrets), secrets, NOW.timestamp)
    old = ca.document("i-0-tpm0", {}, DocumentRequest(), certificate_age=timedelta(days=2))
    fields = cbor2.loads(cbor2.loads(old)[2])
    leaf = x509.load_der_x509_certificate(fields["certificate"])
    assert leaf.not_valid_after_utc < NOW
