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

from attestkit._crypto.der import IA5_STRING, INTEGER, encode_element
from attestkit._crypto.p384 import P384Key
from attestkit._crypto.x509.app_certificates import NO_OTHER_USAGE
from attestkit._crypto.x509.sgx_pki_writer import Window

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
        hardware_id: ID of the chip: 64 bytes, or 8 bytes on Turin.
    """
    levels = {suffix: _integer(level) for suffix, level in spls.items()}
    text = encode_element(IA5_STRING, product.encode("ascii"))
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
        serial: Serial number, positive, at most 20 octets.
        validity: Validity period, with a resolution of seconds.
        path_length: Path length constraint of a CA certificate; None for the certificate of a key
            that signs reports.
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
        usage = x509.KeyUsage(
            digital_signature=False, key_cert_sign=True, crl_sign=True, **NO_OTHER_USAGE
        )
        builder = builder.add_extension(usage, critical=True)
    for suffix, value in (extensions or {}).items():
        own = x509.UnrecognizedExtension(x509.ObjectIdentifier(_PREFIX + suffix), value)
        builder = builder.add_extension(own, critical=False)
    signed = builder.sign(issuer.key.private, SHA384(), ecdsa_deterministic=True)
    return signed.public_bytes(Encoding.DER)


def _name(common_name: str) -> x509.Name:
    parts = (*_COMMON_TO_ALL, (NameOID.COMMON_NAME, common_name))
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts])


def _integer(value: int) -> bytes:
    return encode_element(INTEGER, value.to_bytes(value.bit_length() // 8 + 1, "big"))
