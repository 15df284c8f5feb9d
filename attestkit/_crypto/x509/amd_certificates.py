"""ARK, ASK and VCEK certificates for simulated AMD chips.

Names and extensions are those of "Versioned Chip Endorsement Key (VCEK) Certificate and KDS
Interface Specification" (57230). AMD's CAs sign with RSA-PSS, whose key generation is slow and
whose signatures are not deterministic. The simulated CAs sign with ECDSA P-384 and SHA-384 (RFC
6979) instead, so that equal arguments give equal certificates.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from attestkit._crypto.p384 import P384Key
from attestkit._crypto.x509.sgx_pki_writer import Window

__all__ = ["AmdAuthority", "issue_amd_certificate", "vcek_extensions"]

_PREFIX: Final = "1.3.6.1.4.1.3704.1."
_COMMON_TO_ALL: Final = (
    (NameOID.ORGANIZATIONAL_UNIT_NAME, "Engineering"),
    (NameOID.COUNTRY_NAME, "US"),
    (NameOID.LOCALITY_NAME, "Santa Clara"),
    (NameOID.STATE_OR_PROVINCE_NAME, "CA"),
    (NameOID.ORGANIZATION_NAME, "Advanced Micro Devices"),
)


class AmdAuthority(NamedTuple):
    """A subject or issuer: its common name and its key."""

    name: str
    key: P384Key


def vcek_extensions(product: str, spls: Mapping[str, int], hardware_id: bytes) -> dict[str, bytes]:
    """Return AMD's extensions of a VCEK, by the suffix of AMD's OID.

    Args:
        product: Product with stepping, such as Genoa-B1; at most 127 ASCII characters.
        spls: Security patch levels, 0 to 255, by the suffix of AMD's OID (3.1, 3.2, ...).
        hardware_id: ID of the chip: 64 bytes, on Turin 8.
    """
    levels = {suffix: _integer(level) for suffix, level in spls.items()}
    text = bytes([0x16, len(product)]) + product.encode("ascii")
    return {"1": _integer(1), "2": text, **levels, "4": hardware_id}


def issue_amd_certificate(
    subject: AmdAuthority,
    issuer: AmdAuthority,
    *,
    serial: int,
    validity: Window,
    path_length: int | None,
    extensions: Mapping[str, bytes] | None = None,
) -> bytes:
    """Return the DER of a version 3 certificate.

    Args:
        subject: Name and key of the subject.
        issuer: Name and key of the issuer; the subject for a root certificate.
        serial: Positive, at most 20 octets.
        validity: With a resolution of seconds.
        path_length: For a CA certificate; None for the certificate of a key that signs reports.
        extensions: AMD's extensions, for a key that signs reports.
    """
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(subject.name))
        .issuer_name(_name(issuer.name))
        .public_key(subject.key.private.public_key())
        .serial_number(serial)
        .not_valid_before(validity.start)
        .not_valid_after(validity.end)
    )
    if path_length is not None:
        constraints = x509.BasicConstraints(ca=True, path_length=path_length)
        builder = builder.add_extension(constraints, critical=True)
        builder = builder.add_extension(_ISSUES, critical=True)
    for suffix, value in (extensions or {}).items():
        own = x509.UnrecognizedExtension(x509.ObjectIdentifier(_PREFIX + suffix), value)
        builder = builder.add_extension(own, critical=False)
    signed = builder.sign(issuer.key.private, SHA384(), ecdsa_deterministic=True)
    return signed.public_bytes(Encoding.DER)


_ISSUES: Final = x509.KeyUsage(
    digital_signature=False,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=True,
    crl_sign=True,
    encipher_only=False,
    decipher_only=False,
)


def _name(common_name: str) -> x509.Name:
    parts = (*_COMMON_TO_ALL, (NameOID.COMMON_NAME, common_name))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def _integer(value: int) -> bytes:
    """Return the DER of an integer from 0 to 32767."""
    content = value.to_bytes(value.bit_length() // 8 + 1, "big")
    return bytes([2, len(content)]) + content
