"""Tests of AMD's revocation lists: form, bounds, and the signature of the root."""

from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Final

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding

from attestkit._crypto.key_pairs import RsaKey
from attestkit._crypto.pem import encode_pem
from attestkit._crypto.x509.cert_path import (
    VENDOR_RULES,
    PathCertificate,
    read_path_certificate,
)
from attestkit._crypto.x509.crl import MAX_CRL_SIZE, AmdCrl, check_crl_signature, read_amd_crls
from attestkit._crypto.x509.simulated.amd_certificates import (
    AmdAuthority,
    issue_amd_authority,
    issue_amd_crl,
)
from attestkit._crypto.x509.simulated.certificate_encoder import Window
from attestkit.errors import FormatError, SignatureError
from tests.raising import raises
from tests.runner.cases import every_case

START: Final = datetime(2026, 8, 1, tzinfo=timezone.utc)
WINDOW: Final = Window(START, START + timedelta(days=30))


@cache
def authority(name: str) -> AmdAuthority:
    """Return an authority."""
    return AmdAuthority(name, RsaKey(name.encode().ljust(32, b"\0")))


def certificate(name: str, issuer: str) -> PathCertificate:
    """Return the certificate of an authority."""
    der = issue_amd_authority(
        authority(name), authority(issuer), serial=1, validity=WINDOW, crl_url="https://crl"
    )
    return read_path_certificate(der)


def crl(*revoked: int, name: str = "ARK-Milan") -> bytes:
    """Return a CRL."""
    return issue_amd_crl(authority(name), window=WINDOW, number=7, revoked=revoked)


def check_signature(crl: AmdCrl, issuer: PathCertificate) -> None:
    """Verify the signature of a CRL by AMD's rules."""
    check_crl_signature(crl.envelope, issuer, VENDOR_RULES, "CRL")


def test_crl_is_read_from_der_and_pem() -> None:
    """Dates, number and serial numbers are those of the list, from DER and from PEM."""
    one, two = crl(0, 1, 0x10001), crl()
    [found] = read_amd_crls(one)
    assert found.content.start == int(WINDOW.start.timestamp())
    assert found.content.end == int(WINDOW.end.timestamp())
    assert found.content.number == 7
    assert found.content.serial_numbers == {0, 1, 0x10001}
    text = "".join(f"text\n{encode_pem('X509 CRL', der)}" for der in (one, two))
    assert [each.envelope.der for each in read_amd_crls(text.encode())] == [one, two]


def test_signature_of_root_is_required() -> None:
    """The root's signature is valid; that of another key of the same name is not."""
    [found] = read_amd_crls(crl(1))
    check_signature(found, certificate("ARK-Milan", "ARK-Milan"))
    with raises(SignatureError, "crl_bad_signature", part="not signed by its issuer"):
        check_signature(found, certificate("ARK-Genoa", "ARK-Genoa"))


def test_authority_without_crl_sign_is_refused() -> None:
    """An ASK may sign certificates and no CRLs."""
    [found] = read_amd_crls(crl(1, name="SEV-Milan"))
    with raises(SignatureError, "crl_bad_signature", part="key usage"):
        check_signature(found, certificate("SEV-Milan", "ARK-Milan"))


def test_every_cut_is_refused() -> None:
    """No prefix of a CRL is accepted."""
    whole = crl(1, 2)
    for size in range(len(whole)):
        with pytest.raises(FormatError):
            read_amd_crls(whole[:size])
    with pytest.raises(FormatError):
        read_amd_crls(whole + b"\0")


def test_every_changed_byte_is_refused() -> None:
    """A changed byte makes the list malformed, or its signature or issuer wrong."""
    whole, root = crl(1, 2), certificate("ARK-Milan", "ARK-Milan")
    for at in range(len(whole)):
        changed = bytearray(whole)
        changed[at] ^= 1
        try:
            [found] = read_amd_crls(bytes(changed))
        except FormatError:
            continue
        with raises(SignatureError, "crl_bad_signature"):
            check_signature(found, root)


@every_case(
    ("data", "reason"),
    [
        (b"", "syntax"),
        (b"\xff", "encoding"),
        (b"-----BEGIN X509 CRL-----\nAAAA\n", "syntax"),
        (b"-----BEGIN X509 CRL-----\nA\n-----END X509 CRL-----", "encoding"),
        (encode_pem("CERTIFICATE", b"\x30\x00").encode(), "syntax"),
        (encode_pem("X509 CRL", b"\x30\x00").encode() * 33, "too_many"),
        (b"\x30" + bytes(MAX_CRL_SIZE), "too_large"),
        (b"-" * (64 * MAX_CRL_SIZE + 1), "too_large"),
    ],
)
def test_other_content_is_refused(data: bytes, reason: str) -> None:
    """Neither DER nor PEM, incomplete PEM, and too much of either are errors."""
    with raises(FormatError, reason):
        read_amd_crls(data)


def test_certificate_is_not_a_crl() -> None:
    """A certificate is not accepted as a CRL."""
    with pytest.raises(FormatError):
        read_amd_crls(certificate("ARK-Milan", "ARK-Milan").der)


def test_critical_extension_is_named() -> None:
    """The error names the CRL once, and the extension by its OID."""
    key = generate_private_key(SECP256R1())
    number, issuer = (
        x509.CRLNumber(7),
        x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()),
    )
    der = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.Name([]))
        .last_update(WINDOW.start)
        .next_update(WINDOW.end)
        .add_extension(number, critical=True)
        .add_extension(issuer, critical=False)
        .sign(key, SHA256())
        .public_bytes(Encoding.DER)
    )
    with raises(FormatError, "wrong_value", start="malformed CRL: ", part="2.5.29.20") as caught:
        read_amd_crls(der)
    assert str(caught.value).count("CRL") == 1
