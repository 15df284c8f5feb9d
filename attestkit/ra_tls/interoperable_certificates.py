"""RA-TLS certificates of other implementations.

Supported are the interoperable format of the CCC (Gramine since 1.8, Intel's SGX SDK, rats-tls,
TNG) with a quote of SGX or TDX or a report of SEV-SNP, and Gramine's older format. Only key, dates
and extensions are decoded: Gramine's certificates have other fields that strict decoders refuse,
and the TLS handshake shows that the peer has the key.
"""

import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final, Literal, NamedTuple

from attestkit._crypto.der import (
    BOOLEAN,
    INTEGER,
    OCTET_STRING,
    OID,
    SEQUENCE,
    DerReader,
    context,
    dotted_oid,
)
from attestkit._crypto.hashes import sha256, sha384, sha512
from attestkit._crypto.pem import split_pem
from attestkit._crypto.x509.cert_path import read_time
from attestkit._formats.cbor import CborReader, read_value
from attestkit.errors import FormatError, UnsupportedError, VerificationError

OID_TAGGED_EVIDENCE: Final = "2.23.133.5.4.9"
"""Evidence with a CBOR tag, and claims (TCG DICE Attestation Architecture)."""

OID_GRAMINE: Final = "0.6.9.42.840.113741.1337.6"
"""Quote in Gramine's older format; tag and length of the DER identifier are part of the OID."""

MAX_CERTIFICATE: Final = 1 << 20
"""Maximum size of a certificate in bytes."""

_TAGS: Final[Mapping[int, Literal["quote", "snp"]]] = {60000: "quote", 0x1A7504: "snp"}
_REFUSED_TAGS: Final = {
    60001: "an Intel report, which only the same machine can verify",
    60002: "an Intel report, which only the same machine can verify",
    0xC0C000: "evidence of Confidential Containers, which a Trustee verifies",
    0xC0C001: "a token of Confidential Containers, which has no evidence",
    0x17A000: "evidence for Intel Trust Authority",
    0x17A001: "a token of Intel Trust Authority, which has no evidence",
}
_REFUSED_EXTENSIONS: Final = {
    "1.2.840.113556.10.1.1": "a report of Open Enclave",
    "1.2.840.113741.1.13.1": "a bare SGX quote, which is not bound to the key by itself",
}
# Hash algorithms of the claim pubkey-hash (IANA, Named Information).
_HASHES: Final = {1: sha256, 7: sha384, 8: sha512}
_KEY_CLAIM: Final = "pubkey-hash"
_NONCE_CLAIM: Final = "nonce"
_ZEROS: Final = bytes(32)
_WHAT: Final = "RA-TLS certificate"

Form = Literal["interoperable", "gramine"]
"""Format of a certificate: that of the CCC, or Gramine's older one."""


class CertificateEvidence(NamedTuple):
    """Evidence in a certificate, and the report data that it must have (64 bytes); not verified."""

    form: Form
    kind: Literal["quote", "snp"]
    evidence: bytes  # quote of SGX or TDX, or report of SEV-SNP
    report_data: bytes  # that the evidence must have, 64 bytes
    spki: bytes  # key of the certificate
    valid_from: datetime  # as its issuer states, like the other date
    valid_until: datetime
    claims: Mapping[str, object]  # all claims, `pubkey-hash` included
    nonce: bytes | None  # of the claims


class _Content(NamedTuple):
    spki: bytes
    valid_from: datetime
    valid_until: datetime
    extensions: Mapping[str, bytes]


def has_interoperable_evidence(certificate: bytes | str) -> bool:
    """Return whether a certificate (DER or PEM) has evidence in a format that this module knows.

    True also for a known format that `read_interoperable` refuses with UnsupportedError.

    Raises:
        FormatError: If the certificate is malformed.
    """
    known = {OID_TAGGED_EVIDENCE, OID_GRAMINE, *_REFUSED_EXTENSIONS}
    return not known.isdisjoint(_read(certificate).extensions)


def read_interoperable(certificate: bytes | str) -> CertificateEvidence:
    """Return the evidence in a certificate, and the report data that it must have.

    Verify the evidence with these report data: it is then bound to the certificate's key, whose
    possession a handshake shows. Signature and dates of the certificate are not verified. If it has
    evidence in both formats, that in the interoperable format is returned.

    Args:
        certificate: DER, or PEM with one or more certificates, of which the first is used.

    Raises:
        FormatError: If certificate, evidence or claims are malformed.
        VerificationError: If evidence is missing (reason `no_evidence`), or its claims are for a
            key other than the certificate's (`report_data`).
        UnsupportedError: If the evidence is of a kind that is not supported.
    """
    found = _read(certificate)
    if (value := found.extensions.get(OID_TAGGED_EVIDENCE)) is not None:
        return _read_tagged(found, value)
    if (value := found.extensions.get(OID_GRAMINE)) is not None:
        data = sha256(found.spki) + _ZEROS
        return CertificateEvidence("gramine", "quote", value, data, *found[:3], {}, None)
    for oid, name in _REFUSED_EXTENSIONS.items():
        if oid in found.extensions:
            raise UnsupportedError(f"{_WHAT}: {name}: not supported", reason="feature")
    message = f"{_WHAT}: must have an extension with evidence in a known format"
    raise VerificationError(message, reason="no_evidence")


def _read_tagged(found: _Content, value: bytes) -> CertificateEvidence:
    reader = CborReader(value)
    tag = reader.tag_number()
    kind = _TAGS.get(tag)
    if kind is None:
        name = _REFUSED_TAGS.get(tag, f"evidence with the CBOR tag {tag}")
        raise UnsupportedError(f"{_WHAT}: {name}: not supported", reason="feature")
    if (count := reader.count()) != 2:
        message = f"{_WHAT}: evidence and claims: must be 2 items, not {count}"
        raise FormatError(message, reason="wrong_size")
    evidence, buffer = reader.blob(), reader.blob()
    reader.finish(_WHAT)
    claims = _read_claims(buffer)
    _check_key(claims, found.spki)
    nonce = claims.get(_NONCE_CLAIM)
    if nonce is not None and not isinstance(nonce, bytes):
        raise FormatError(f"{_WHAT}: claim nonce: must be bytes", reason="wrong_type")
    data = sha256(buffer) + _ZEROS
    return CertificateEvidence("interoperable", kind, evidence, data, *found[:3], claims, nonce)


def _read_claims(buffer: bytes) -> dict[str, object]:
    claims = read_value(buffer)
    if not isinstance(claims, dict) or not all(isinstance(name, str) for name in claims):
        message = f"{_WHAT}: claims: must be a map with texts as keys"
        raise FormatError(message, reason="wrong_type")
    return {str(name): value for name, value in claims.items()}


def _check_key(claims: Mapping[str, object], spki: bytes) -> None:
    """Check that the claim `pubkey-hash` is the hash of the certificate's key, `spki` in DER.

    The claim is bytes with a CBOR array of algorithm and hash.
    """
    what = f"{_WHAT}: claim {_KEY_CLAIM}"
    claim = claims.get(_KEY_CLAIM)
    if claim is None:
        raise FormatError(f"{what}: missing", reason="missing")
    entry: Any = read_value(claim) if isinstance(claim, bytes) else None
    if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[1], bytes):
        message = f"{what}: must be bytes with a CBOR array of algorithm and hash"
        raise FormatError(message, reason="wrong_type")
    algorithm = _HASHES.get(entry[0]) if type(entry[0]) is int else None
    if algorithm is None:
        message = f"{what}: algorithm must be 1, 7 or 8 (SHA-256, SHA-384, SHA-512)"
        raise FormatError(message, reason="unsupported_algorithm")
    if not hmac.compare_digest(algorithm(spki), entry[1]):
        message = f"{what}: must be the hash of the certificate's key"
        raise VerificationError(message, reason="report_data")


def _read(certificate: bytes | str) -> _Content:
    """Return key, dates and extensions of a certificate (RFC 5280, 4.1)."""
    try:
        return _walk(_to_der(certificate))
    except FormatError as error:
        message = f"{_WHAT}: malformed: {error.message}"
        raise FormatError(message, offset=error.offset, reason=error.reason) from error


def _to_der(certificate: bytes | str) -> bytes:
    if len(certificate) > 2 * MAX_CERTIFICATE:
        raise FormatError(
            f"{len(certificate)} bytes, at most {MAX_CERTIFICATE}", reason="too_large"
        )
    if isinstance(certificate, bytes) and not certificate.lstrip().startswith(b"-----BEGIN"):
        der = certificate
    elif isinstance(certificate, bytes):
        der = split_pem(certificate.decode("ascii", errors="replace"))[0]
    else:
        der = split_pem(certificate)[0]
    if len(der) > MAX_CERTIFICATE:
        raise FormatError(f"{len(der)} bytes, at most {MAX_CERTIFICATE}", reason="too_large")
    return der


def _walk(der: bytes) -> _Content:
    outer = DerReader(der)
    body = outer.enter(SEQUENCE)
    outer.finish()
    fields = body.enter(SEQUENCE)
    fields.whole(context(0))  # version
    fields.whole(INTEGER)
    fields.whole(SEQUENCE)  # algorithm of the signature
    fields.whole(SEQUENCE)  # issuer
    dates = fields.enter(SEQUENCE)
    valid_from, valid_until = read_time(dates), read_time(dates)
    fields.whole(SEQUENCE)  # subject
    spki = fields.whole(SEQUENCE)
    while fields.tag() is not None and fields.tag() != context(3):
        fields.whole()  # unique identifiers
    if fields.tag() is None:
        return _Content(spki, valid_from, valid_until, {})
    return _Content(spki, valid_from, valid_until, _extensions(fields.enter(context(3))))


def _extensions(wrapper: DerReader) -> dict[str, bytes]:
    """Read extensions; return the contents of their OCTET STRINGs by dotted OID."""
    found: dict[str, bytes] = {}
    entries = wrapper.enter(SEQUENCE)
    while entries.tag() is not None:
        entry = entries.enter(SEQUENCE)
        oid = dotted_oid(entry.content(OID))
        if oid in found:
            raise FormatError(f"extension {oid} must occur once", reason="duplicate")
        if entry.tag() == BOOLEAN:
            entry.whole(BOOLEAN)
        found[oid] = entry.content(OCTET_STRING)
    return found
