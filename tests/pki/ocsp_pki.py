"""A small PKI with OCSP responders, made with `cryptography`, for tests of OCSP."""

from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from functools import cache
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.ocsp.answer_writer import OcspResponder, write_ocsp_answer
from attestkit._crypto.x509.ocsp.check import KeptStatuses, OcspStatus
from attestkit._crypto.x509.ocsp.request import cert_id
from tests.pki.certificates import name_of

NOW = datetime(2026, 8, 1, tzinfo=timezone.utc)
DAY = timedelta(days=1)
SIGNING = (ExtendedKeyUsageOID.OCSP_SIGNING,)
AUTHORITY = x509.BasicConstraints(ca=True, path_length=None)
END_ENTITY = x509.BasicConstraints(ca=False, path_length=None)
DIGITAL_SIGNATURE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)


def check_ocsp(
    answers: Iterable[bytes], certificate: bytes, issuer: bytes, now: datetime, **options: Any
) -> OcspStatus:
    """Return the status of a certificate by answers that were not used before."""
    return KeptStatuses([*answers]).check(certificate, issuer, now, **options)


@cache
def key_of(name: str) -> ec.EllipticCurvePrivateKey:
    """Return the P-384 key of a name."""
    del name  # derives distinct keys
    return ec.generate_private_key(ec.SECP384R1())


def key_pem(name: str) -> bytes:
    """Return the private key of a name in PEM."""
    return key_of(name).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


@cache
def certificate_of(
    name: str,
    issuer: str,
    *,
    serial: int = 0x41_0123456789ABCDEF,
    usages: tuple[x509.ObjectIdentifier, ...] = (),
    extensions: tuple[x509.ExtensionType, ...] = (),
    until: datetime = NOW + 400 * DAY,
    signer: str = "",
    algorithm: type[SHA256 | SHA384] = SHA384,
) -> x509.Certificate:
    """Return a certificate, signed by `signer` or else by its issuer."""
    public = key_of(name).public_key()
    builder = x509.CertificateBuilder(
        name_of(issuer), name_of(name), public, serial, NOW - 400 * DAY, until
    )
    for extension in extensions:
        critical = not isinstance(extension, x509.OCSPNoCheck)
        builder = builder.add_extension(extension, critical=critical)
    if usages:
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
    return builder.sign(key_of(signer or issuer), algorithm())


def der(certificate: x509.Certificate) -> bytes:
    """Return the DER of a certificate."""
    return certificate.public_bytes(Encoding.DER)


def issuer_certificate(name: str = "issuer") -> x509.Certificate:
    """Return the certificate of a CA that signed itself."""
    return certificate_of(name, name, serial=7, extensions=(AUTHORITY,))


def subject_certificate(serial: int = 0x41_0123456789ABCDEF) -> x509.Certificate:
    """Return a certificate of the issuer, about which a responder is asked."""
    return certificate_of("subject", "issuer", serial=serial, extensions=(END_ENTITY,))


def responder_certificate(name: str = "responder") -> x509.Certificate:
    """Return the certificate of a responder that the issuer authorized."""
    return certificate_of(
        name, "issuer", serial=11, usages=SIGNING, extensions=(END_ENTITY, DIGITAL_SIGNATURE)
    )


def responder_of(
    certificate: x509.Certificate | None = None, key: str = "responder"
) -> OcspResponder:
    """Return a responder with a certificate, and the key of a name."""

    def sign(data: bytes) -> bytes:
        return key_of(key).sign(data, ec.ECDSA(SHA384()))

    return OcspResponder(der(certificate or responder_certificate()), sign)


def answer_about(
    serial: int = 0x41_0123456789ABCDEF,
    responder: OcspResponder | None = None,
    *,
    this_update: datetime = NOW,
    validity: timedelta = DAY,
    **values: Any,
) -> bytes:
    """Return an answer of attestkit's writer about the certificate with a serial number."""
    subject, issuer = subject_certificate(serial), issuer_certificate()
    found = cert_id(read_path_certificate(der(subject)), read_path_certificate(der(issuer)))
    return write_ocsp_answer(
        responder or responder_of(),
        found,
        this_update,
        this_update + validity,
        **values,
    )


def builder_about(
    *, status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD, until: datetime | None = NOW + DAY
) -> ocsp.OCSPResponseBuilder:
    """Return a builder of `cryptography` for an answer about the subject."""
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    return ocsp.OCSPResponseBuilder().add_response(
        subject_certificate(),
        issuer_certificate(),
        SHA384(),
        status,
        NOW,
        until,
        NOW if revoked else None,
        x509.ReasonFlags.key_compromise if revoked else None,
    )
