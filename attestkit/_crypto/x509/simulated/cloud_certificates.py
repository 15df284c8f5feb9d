"""Certificates of simulated clouds: CAs and end-entity certificates of any issuer key.

Google's and Azure's certificates for attestation keys of TPMs and AWS's Nitro chains have the
profile of RFC 5280 with few extensions. Signatures are deterministic, so equal arguments give equal
bytes.

`names_simulator` recognizes certificates of simulated authorities, whose roots a verifier may
trust.
"""

from typing import Final, NamedTuple

from attestkit._crypto.der import OCTET_STRING, OID, UTF8_STRING, encode_element, encode_sequence
from attestkit._crypto.x509.names import encode_attribute
from attestkit._crypto.x509.simulated import certificate_encoder

SIMULATED_MARK: Final = "attestkit-simulated"
"""Part of the subject of each certificate that a simulated cloud or TPM issues for its keys."""


def names_simulator(certificate: bytes) -> bool:
    """Return whether a certificate (DER) contains `SIMULATED_MARK`, in whichever field."""
    return SIMULATED_MARK.encode() in certificate


_DIGITAL_SIGNATURE: Final = b"\x07\x80"  # number of unused bits, bits
_EXTENDED_KEY_USAGE: Final = 37  # last byte of 2.5.29.37
# Last byte of 2.5.4 of the attributes of a name.
_ATTRIBUTES: Final = {"CN": 3, "serialNumber": 5, "C": 6, "L": 7, "ST": 8, "O": 10, "OU": 11}


class Extension(NamedTuple):
    """An extension that is not critical."""

    oid: bytes  # content of the OBJECT IDENTIFIER
    value: bytes  # DER


def encode_name(**attributes: str) -> bytes:
    """Return a Name in DER with UTF-8 attributes, in the order of the arguments.

    The names of the arguments are CN, O, OU, C, L, ST and serialNumber.
    """
    encoded = [
        encode_attribute(_ATTRIBUTES[kind], UTF8_STRING, value)
        for kind, value in attributes.items()
    ]
    return encode_sequence(*encoded)


def issue_cloud_authority(
    subject: certificate_encoder.Issuer,
    issuer: certificate_encoder.Issuer,
    *,
    serial: int,
    validity: certificate_encoder.Window,
    path_length: int | None,
    usages: tuple[bytes, ...] = (),
    extensions: tuple[Extension, ...] = (),
) -> bytes:
    """Return the DER of a CA certificate.

    Args:
        subject: Name and key of the subject.
        issuer: Name and key of the issuer; the subject for a root certificate.
        serial: Serial number, positive, at most 20 octets.
        validity: Validity period from 1950 on, with a resolution of seconds.
        path_length: Path length constraint; None for none.
        usages: Extended key usages, contents of OBJECT IDENTIFIERs.
        extensions: Further extensions.

    Raises:
        UsageError: If `validity` starts or ends before 1950.
    """
    encoded = [
        certificate_encoder.encode_key_usage(certificate_encoder.CERT_AND_CRL_SIGN),
        *_extended_key_usage(usages),
        certificate_encoder.encode_basic_constraints(authority=True, path_length=path_length),
        *map(_encode, extensions),
    ]
    return _issue((subject.name, subject.spki), issuer, serial, validity, encoded)


def issue_cloud_leaf(
    subject: tuple[bytes, bytes],
    issuer: certificate_encoder.Issuer,
    *,
    serial: int,
    validity: certificate_encoder.Window,
    usages: tuple[bytes, ...] = (),
    extensions: tuple[Extension, ...] = (),
    constrained: bool = True,
) -> bytes:
    """Return the DER of an end-entity certificate for digital signatures.

    Args:
        subject: Name and SubjectPublicKeyInfo, both in DER.
        issuer: Name and key of the issuer.
        serial: Serial number, positive, at most 20 octets.
        validity: Validity period from 1950 on, with a resolution of seconds.
        usages: Extended key usages, contents of OBJECT IDENTIFIERs.
        extensions: Further extensions.
        constrained: Whether it has basic constraints.

    Raises:
        UsageError: If `validity` starts or ends before 1950.
    """
    encoded = [
        certificate_encoder.encode_key_usage(_DIGITAL_SIGNATURE),
        *_extended_key_usage(usages),
        *([certificate_encoder.encode_basic_constraints(authority=False)] if constrained else []),
        *map(_encode, extensions),
    ]
    return _issue(subject, issuer, serial, validity, encoded)


def _issue(
    subject: tuple[bytes, bytes],
    issuer: certificate_encoder.Issuer,
    serial: int,
    validity: certificate_encoder.Window,
    extensions: list[bytes],
) -> bytes:
    key_ids = (
        certificate_encoder.encode_subject_key_id(subject[1]),
        certificate_encoder.encode_authority_key_id(certificate_encoder.key_id(issuer.spki)),
    )
    return issuer.issue(subject, (*extensions, *key_ids), serial=serial, window=validity)


def _encode(extension: Extension) -> bytes:
    return encode_sequence(
        encode_element(OID, extension.oid), encode_element(OCTET_STRING, extension.value)
    )


def _extended_key_usage(usages: tuple[bytes, ...]) -> tuple[bytes, ...]:
    if not usages:
        return ()
    oids = [encode_element(OID, usage) for usage in usages]
    return (certificate_encoder.encode_extension(_EXTENDED_KEY_USAGE, encode_sequence(*oids)),)
