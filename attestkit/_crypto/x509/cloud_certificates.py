"""Certificates of simulated clouds: CAs and end-entity certificates of any issuer key.

Google's and Azure's certificates for attestation keys of TPMs and AWS's Nitro chains have the
profile of RFC 5280 with few extensions; vtpm.md, sections 6.6, 7.2 and 8.1, lists them. Signatures
are deterministic, so equal arguments give equal bytes.
"""

from typing import Final, NamedTuple, TypeAlias

from attestkit._crypto.der import (
    BIT_STRING,
    OCTET_STRING,
    OID,
    SEQUENCE,
    DerReader,
    context,
    encode_element,
    encode_integer,
)
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.key_pairs import RsaKey
from attestkit._crypto.p384 import ECDSA_SHA384, P384Key
from attestkit._crypto.x509.certificate_encoder import (
    KEY_USAGE,
    RSA_PSS_SHA384,
    SUBJECT_KEY_ID,
    UTF8_STRING,
    encode_attribute,
    encode_authority_key_id,
    encode_basic_constraints,
    encode_certificate,
    encode_extension,
    encode_sequence,
    key_id,
)
from attestkit._crypto.x509.sgx_pki_writer import Window

_ECDSA_SHA256: Final = bytes.fromhex("300a06082a8648ce3d040302")  # AlgorithmIdentifier
_CERT_AND_CRL_SIGN: Final = b"\x01\x06"  # number of unused bits, bits
_DIGITAL_SIGNATURE: Final = b"\x07\x80"
_EXTENDED_KEY_USAGE: Final = 37  # last byte of 2.5.29.37
# Last byte of 2.5.4 of the attributes of a name.
_ATTRIBUTES: Final = {"CN": 3, "serialNumber": 5, "C": 6, "L": 7, "ST": 8, "O": 10, "OU": 11}

SigningKey: TypeAlias = P256Key | P384Key | RsaKey
"""Private key of a simulated CA: ECDSA with SHA-256 or SHA-384, or RSASSA-PSS with SHA-384."""


class CloudAuthority(NamedTuple):
    """A CA: its name in DER and its key."""

    name: bytes
    key: SigningKey

    @property
    def spki(self) -> bytes:
        """The public key as SubjectPublicKeyInfo in DER."""
        return self.key.spki_der if isinstance(self.key, P256Key) else self.key.spki


class Extension(NamedTuple):
    """An extension that is not critical."""

    oid: bytes  # content of the OBJECT IDENTIFIER
    value: bytes  # DER


def certificate_subject(certificate: bytes) -> bytes:
    """Return the subject of a certificate: a Name in DER.

    Raises:
        FormatError: If the certificate is malformed.
    """
    fields = DerReader(certificate).enter(SEQUENCE).enter(SEQUENCE)
    fields.content(context(0))
    for _ in range(4):  # serial number, algorithm, issuer, validity
        fields.whole()
    return fields.whole(SEQUENCE)


def encode_name(**attributes: str) -> bytes:
    """Return a Name with UTF-8 attributes in the given order: see `_ATTRIBUTES`."""
    encoded = [
        encode_attribute(_ATTRIBUTES[kind], UTF8_STRING, value)
        for kind, value in attributes.items()
    ]
    return encode_sequence(*encoded)


def issue_cloud_authority(
    subject: CloudAuthority,
    issuer: CloudAuthority,
    *,
    serial: int,
    validity: Window,
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
        _key_usage(_CERT_AND_CRL_SIGN),
        *_extended_key_usage(usages),
        encode_basic_constraints(authority=True, path_length=path_length),
        *map(_encode, extensions),
    ]
    return _issue((subject.name, subject.spki), issuer, serial, validity, encoded)


def issue_cloud_leaf(
    subject: tuple[bytes, bytes],
    issuer: CloudAuthority,
    *,
    serial: int,
    validity: Window,
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
        _key_usage(_DIGITAL_SIGNATURE),
        *_extended_key_usage(usages),
        *([encode_basic_constraints(authority=False)] if constrained else []),
        *map(_encode, extensions),
    ]
    return _issue(subject, issuer, serial, validity, encoded)


def _issue(
    subject: tuple[bytes, bytes],
    issuer: CloudAuthority,
    serial: int,
    validity: Window,
    extensions: list[bytes],
) -> bytes:
    _, spki = subject
    key_ids = (
        encode_extension(SUBJECT_KEY_ID, encode_element(OCTET_STRING, key_id(spki))),
        encode_authority_key_id(key_id(issuer.spki)),
    )
    return encode_certificate(
        issuer.name,
        subject,
        (*extensions, *key_ids),
        serial=serial,
        window=validity,
        algorithm=_algorithm(issuer.key),
        sign=lambda data: _sign(issuer.key, data),
    )


def _encode(extension: Extension) -> bytes:
    return encode_sequence(
        encode_element(OID, extension.oid), encode_element(OCTET_STRING, extension.value)
    )


def _algorithm(key: SigningKey) -> bytes:
    if isinstance(key, P256Key):
        return _ECDSA_SHA256
    return ECDSA_SHA384 if isinstance(key, P384Key) else RSA_PSS_SHA384


def _sign(key: SigningKey, data: bytes) -> bytes:
    """Return the signature as certificates contain it."""
    if isinstance(key, RsaKey):
        return key.sign(data)
    if isinstance(key, P256Key):
        return key.sign_der(data)
    return encode_sequence(*map(encode_integer, key.sign(data)))


def _key_usage(bits: bytes) -> bytes:
    return encode_extension(KEY_USAGE, encode_element(BIT_STRING, bits), critical=True)


def _extended_key_usage(usages: tuple[bytes, ...]) -> tuple[bytes, ...]:
    if not usages:
        return ()
    oids = [encode_element(OID, usage) for usage in usages]
    return (encode_extension(_EXTENDED_KEY_USAGE, encode_sequence(*oids)),)
