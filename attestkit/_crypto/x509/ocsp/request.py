"""OCSP requests (RFC 6960, section 4.1) and the identifier of a certificate in OCSP messages."""

import hashlib
from collections.abc import Callable, Collection, Mapping
from typing import Final, Literal, NamedTuple, TypeVar

from attestkit._crypto.der import (
    OCTET_STRING,
    SEQUENCE,
    DerReader,
    context,
    encode_element,
    encode_integer,
    encode_sequence,
)
from attestkit._crypto.x509.cert_path import PathCertificate, read_extensions, read_path_certificate
from attestkit._crypto.x509.names import public_key_bits
from attestkit.errors import FormatError, UsageError

OcspHash = Literal["sha1", "sha256", "sha384"]
"""Hash of the issuer's name and key in a CertID."""

NONCE: Final = "1.3.6.1.5.5.7.48.1.2"
"""OID of the nonce extension (RFC 6960, 4.4.1)."""

NONCE_OID: Final = bytes.fromhex("06092b0601050507300102")
"""OID of the nonce extension in DER, with tag and length."""

MAX_NONCE: Final = 128
"""Bytes of a nonce (RFC 9654, section 2.1)."""

MAX_REQUEST: Final = 4096
"""Bytes of a request that is read."""

_Message = TypeVar("_Message")
_NULL: Final = b"\x05\x00"
_OIDS: Final[Mapping[OcspHash, bytes]] = {
    "sha1": bytes.fromhex("06052b0e03021a"),
    "sha256": bytes.fromhex("0609608648016503040201"),
    "sha384": bytes.fromhex("0609608648016503040202"),
}
# With and without the optional parameters NULL (RFC 5754, section 2).
_ALGORITHMS: Final[Mapping[bytes, OcspHash]] = {
    encode_sequence(oid, parameters): name
    for name, oid in _OIDS.items()
    for parameters in (_NULL, b"")
}


class CertId(NamedTuple):
    """CertID: identifies a certificate by its serial number and hashes of its issuer."""

    hash_name: OcspHash
    name_hash: bytes  # of the issuer's Name in DER
    key_hash: bytes  # of the issuer's public key, without tag, length and unused bits
    serial: int


class OcspRequest(NamedTuple):
    """A request about one certificate."""

    cert_id: CertId
    nonce: bytes | None  # 1 to 128 bytes


def cert_id(
    certificate: PathCertificate, issuer: PathCertificate, hash_name: OcspHash = "sha384"
) -> CertId:
    """Return the identifier in OCSP messages of a certificate that `issuer` issued.

    Raises:
        UsageError: If the hash is not supported.
        FormatError: If the serial number is negative, or the issuer's public key is malformed.
    """
    if hash_name not in _OIDS:
        message = f"OCSP: unsupported hash: {hash_name!r}; use sha1, sha256 or sha384"
        raise UsageError(message, reason="unsupported_algorithm")
    if certificate.serial < 0:
        raise FormatError("OCSP: serial number is negative", reason="wrong_value")
    name_hash, key_hash = (
        hashlib.new(hash_name, data, usedforsecurity=False).digest()
        for data in (issuer.subject, public_key_bits(issuer.spki))
    )
    return CertId(hash_name, name_hash, key_hash, certificate.serial)


def write_ocsp_request(
    certificate: bytes,
    issuer: bytes,
    *,
    hash_name: OcspHash = "sha384",
    nonce: bytes | None = None,
) -> bytes:
    """Return the DER of a request about a certificate.

    Args:
        certificate: In DER.
        issuer: The certificate of its issuer in DER.
        hash_name: Hash of the identifier.
        nonce: 1 to 128 bytes (RFC 9654); older responders accept at most 32 (RFC 8954). None
            sends no nonce.

    Raises:
        FormatError: If a certificate is malformed.
        UsageError: If the hash is not supported, or the nonce is empty or over 128 bytes.
    """
    subject, authority = map(read_path_certificate, (certificate, issuer))
    found = encode_cert_id(cert_id(subject, authority, hash_name))
    extensions = b"" if nonce is None else encode_element(context(2), encode_nonce(nonce))
    return encode_sequence(encode_sequence(encode_sequence(encode_sequence(found)), extensions))


def read_ocsp_request(der: bytes) -> OcspRequest:
    """Parse an OCSPRequest in DER about one certificate, as a simulated responder receives it.

    Raises:
        FormatError: If it is malformed, signed, over 4,096 bytes, asks about several certificates,
            has the name of a requester or a critical extension, or a hash is not supported.
    """
    return read_message(der, "OCSP request", MAX_REQUEST, _read_request)


def read_message(
    der: bytes, subject: str, most: int, read: Callable[[DerReader], _Message]
) -> _Message:
    """Return what `read` returns for the content of `der`: one SEQUENCE, of at most `most` bytes.

    Raises:
        FormatError: If it is malformed or too large; the error's text begins with `subject`.
    """
    if len(der) > most:
        raise FormatError(f"{subject}: {len(der)} bytes, at most {most}", reason="too_large")
    try:
        return read(DerReader(der).enter_only(SEQUENCE))
    except FormatError as error:
        message = f"{subject}: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error


def _read_request(outer: DerReader) -> OcspRequest:
    fields = outer.enter(SEQUENCE)
    outer.finish()  # an optional signature is not supported
    request = fields.enter(SEQUENCE).enter_only(SEQUENCE)
    found = read_cert_id(request)
    request.finish()
    nonce = read_nonce(read_optional_extensions(fields, context(2), {NONCE}))
    fields.finish()
    return OcspRequest(found, nonce)


def read_optional_extensions(
    fields: DerReader, tag: int, known: Collection[str] = ()
) -> dict[str, bytes]:
    """Read extensions in an element with this tag; without the element, return an empty dict.

    Raises:
        FormatError: If they are malformed, or one whose OID is not in `known` is critical.
    """
    if fields.tag() != tag:
        return {}
    found, critical = read_extensions(fields.enter(tag))
    if unknown := critical.difference(known):
        raise FormatError(f"unknown critical extension: {min(unknown)}", reason="unsupported")
    return found


def read_cert_id(reader: DerReader) -> CertId:
    """Read a CertID.

    Raises:
        FormatError: If it is malformed, or its hash is not supported.
    """
    at = reader.at
    fields = reader.enter(SEQUENCE)
    hash_name = _ALGORITHMS.get(fields.whole(SEQUENCE))
    if hash_name is None:
        message = "CertID: hash must be SHA-1, SHA-256 or SHA-384"
        raise FormatError(message, offset=at, reason="unsupported_algorithm")
    size = hashlib.new(hash_name, usedforsecurity=False).digest_size
    name_hash, key_hash = fields.content(OCTET_STRING), fields.content(OCTET_STRING)
    if {len(name_hash), len(key_hash)} != {size}:
        raise FormatError(f"CertID: hashes must have {size} bytes", offset=at, reason="wrong_size")
    serial = fields.integer()
    fields.finish()
    return CertId(hash_name, name_hash, key_hash, serial)


def encode_cert_id(found: CertId) -> bytes:
    """Return the DER of a CertID; the hash algorithm has the parameters NULL."""
    return encode_sequence(
        encode_sequence(_OIDS[found.hash_name], _NULL),
        encode_element(OCTET_STRING, found.name_hash),
        encode_element(OCTET_STRING, found.key_hash),
        encode_integer(found.serial),
    )


def read_nonce(extensions: Mapping[str, bytes]) -> bytes | None:
    """Return the nonce of a message (RFC 9654, section 2.1); None without the extension.

    Raises:
        FormatError: If it is malformed, empty, or over 128 bytes.
    """
    value = extensions.get(NONCE)
    if value is None:
        return None
    nonce = DerReader(value).only(OCTET_STRING)
    if not 1 <= len(nonce) <= MAX_NONCE:
        message = f"nonce: {len(nonce)} bytes, must be 1 to {MAX_NONCE}"
        raise FormatError(message, reason="wrong_size")
    return nonce


def encode_nonce(nonce: bytes) -> bytes:
    """Return the DER of extensions that consist of a nonce.

    Raises:
        UsageError: If the nonce is empty, or over 128 bytes.
    """
    if not 1 <= len(nonce) <= MAX_NONCE:
        message = f"OCSP nonce: {len(nonce)} bytes, must be 1 to {MAX_NONCE}"
        raise UsageError(message, reason="wrong_size")
    value = encode_element(OCTET_STRING, encode_element(OCTET_STRING, nonce))
    return encode_sequence(encode_sequence(NONCE_OID, value))
