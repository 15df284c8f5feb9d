"""Reader of OCSP answers (RFC 6960, section 4.2); it verifies nothing."""

from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache, partial
from typing import Final, Literal, NamedTuple, get_args

from attestkit._crypto.der import (
    ENUMERATED,
    GENERALIZED_TIME,
    OCTET_STRING,
    OID,
    SEQUENCE,
    DerReader,
    context,
    dotted_oid,
)
from attestkit._crypto.x509.cert_path import PathCertificate, read_time
from attestkit._crypto.x509.ocsp import request
from attestkit._crypto.x509.path_rules import read_kept_certificate
from attestkit.errors import CollateralError, FormatError

MAX_ANSWER: Final = 16 << 10
"""Bytes of an answer; NVIDIA's have about 1,100."""

RevocationReason = Literal[
    "unspecified",
    "key_compromise",
    "ca_compromise",
    "affiliation_changed",
    "superseded",
    "cessation_of_operation",
    "certificate_hold",
    "remove_from_crl",
    "privilege_withdrawn",
    "aa_compromise",
]
"""CRLReason (RFC 5280, 5.3.1)."""

CertStatus = Literal["good", "revoked", "unknown"]
"""Status of a certificate in an answer."""

REASONS: Final[Mapping[int, RevocationReason]] = dict(
    zip((0, 1, 2, 3, 4, 5, 6, 8, 9, 10), get_args(RevocationReason), strict=True)
)
"""Reasons by their numbers in CRLReason; 7 is not used."""

ERRORS: Final[Mapping[int, str]] = {
    1: "malformed request",
    2: "internal error",
    3: "try later",
    5: "signature required",
    6: "unauthorized",
}
"""Names of errors by OCSPResponseStatus; 0 is successful, 4 is not used."""

BASIC: Final = bytes.fromhex("06092b0601050507300101")
"""OID of the basic response type in DER (RFC 6960, 4.2.1)."""

_GOOD, _UNKNOWN, _REVOKED = 0x80, 0x82, 0xA1  # [0] and [2] IMPLICIT NULL, [1] IMPLICIT SEQUENCE


class OcspAnswer(NamedTuple):
    """An answer about one certificate, not verified."""

    der: bytes
    signed: bytes  # ResponseData
    algorithm: bytes  # AlgorithmIdentifier in DER
    signature: bytes
    responder: PathCertificate
    key_hash: bytes | None  # SHA-1 of the responder's public key, or
    name: bytes | None  # the responder's Name in DER
    produced_at: datetime  # aware, as all times
    cert_id: request.CertId
    status: CertStatus
    revoked_at: datetime | None
    revocation_reason: RevocationReason | None
    this_update: datetime
    next_update: datetime
    nonce: bytes | None


@lru_cache(maxsize=512)
def read_ocsp_answer(der: bytes) -> OcspAnswer:
    """Parse an OCSPResponse in DER that is successful and about one certificate.

    Raises:
        CollateralError: If the responder returned an error (`fetch_failed`).
        FormatError: If the answer is malformed, over 16 KiB, without nextUpdate, about several
            certificates, does not contain exactly one certificate, or has a critical extension.
    """
    return request.read_message(der, "OCSP answer", MAX_ANSWER, partial(_read_answer, der))


def _read_answer(der: bytes, outer: DerReader) -> OcspAnswer:
    basic = DerReader(_unwrap(outer)).enter(SEQUENCE)
    signed, algorithm = basic.whole(SEQUENCE), basic.whole(SEQUENCE)
    unused, signature = basic.bits()
    if unused:
        raise FormatError("signature has unused bits", reason="wrong_value")
    wrapper = basic.enter(context(0))
    basic.finish()
    certificates = wrapper.enter(SEQUENCE)
    wrapper.finish()
    responder = read_kept_certificate(certificates.whole(SEQUENCE))
    certificates.finish()
    fields = DerReader(signed).enter(SEQUENCE)
    key_hash, name = _responder_id(fields)
    produced_at = _generalized_time(fields)
    responses = fields.enter(SEQUENCE)
    found, (status, revoked_at, reason), times = _single_response(responses.enter(SEQUENCE))
    responses.finish()
    nonce = request.read_nonce(
        request.read_optional_extensions(fields, context(1), {request.NONCE})
    )
    fields.finish()
    return OcspAnswer(
        der,
        signed,
        algorithm,
        signature,
        responder,
        key_hash,
        name,
        produced_at,
        found,
        status,
        revoked_at,
        reason,
        *times,
        nonce,
    )


def _unwrap(outer: DerReader) -> bytes:
    """Return the BasicOCSPResponse of a successful OCSPResponse, which must end with it."""
    number = outer.content(ENUMERATED)
    if number != b"\0":
        outer.finish()
        problem = ERRORS.get(number[0]) if len(number) == 1 else None
        if problem is None:
            raise FormatError(f"unknown response status {number[:8].hex()}", reason="wrong_value")
        message = f"OCSP answer: the responder reports: {problem}; retry later or check the request"
        raise CollateralError(message, reason="fetch_failed")
    wrapper = outer.enter(context(0))
    outer.finish()
    fields = wrapper.enter(SEQUENCE)
    wrapper.finish()
    if (kind := fields.whole(OID)) != BASIC:
        name = dotted_oid(DerReader(kind).content(OID))
        raise FormatError(f"unsupported type of response: {name}", reason="unsupported")
    basic = fields.content(OCTET_STRING)
    fields.finish()
    inner = DerReader(basic)
    inner.whole(SEQUENCE)
    inner.finish()
    return basic


def _responder_id(fields: DerReader) -> tuple[bytes | None, bytes | None]:
    """Return the hash of the responder's key and None, or None and the responder's name.

    No version precedes it: the only version is the default, which DER omits.
    """
    if fields.tag() == context(2):
        return fields.enter(context(2)).only(OCTET_STRING), None
    wrapper = fields.enter(context(1))
    name = wrapper.whole(SEQUENCE)
    wrapper.finish()
    return None, name


_Status = tuple[CertStatus, "datetime | None", "RevocationReason | None"]


def _single_response(
    fields: DerReader,
) -> tuple[request.CertId, _Status, tuple[datetime, datetime]]:
    """Return the CertID, the status, and the times thisUpdate and nextUpdate."""
    found = request.read_cert_id(fields)
    status = _cert_status(fields)
    this_update = _generalized_time(fields)
    if fields.tag() != context(0):
        raise FormatError("nextUpdate is missing", offset=fields.at, reason="missing")
    wrapper = fields.enter(context(0))
    next_update = _generalized_time(wrapper)
    wrapper.finish()
    request.read_optional_extensions(fields, context(1))
    fields.finish()
    return found, status, (this_update, next_update)


def _cert_status(fields: DerReader) -> _Status:
    at, tag = fields.at, fields.tag()
    if tag == _REVOKED:
        return _revoked_info(fields.enter(_REVOKED))
    if tag not in {_GOOD, _UNKNOWN}:
        raise FormatError("status: not good, revoked or unknown", offset=at, reason="wrong_type")
    if fields.content(tag):
        raise FormatError("status: good and unknown have no data", offset=at, reason="wrong_size")
    return ("good" if tag == _GOOD else "unknown"), None, None


def _revoked_info(fields: DerReader) -> _Status:
    revoked_at = _generalized_time(fields)
    reason: RevocationReason = "unspecified"
    if fields.tag() == context(0):
        number = fields.enter(context(0)).only(ENUMERATED)
        known = REASONS.get(number[0]) if len(number) == 1 else None
        if known is None:
            message = f"revocation reason: {number[:8].hex()}, must be 00 to 06 or 08 to 0a"
            raise FormatError(message, reason="wrong_value")
        reason = known
    fields.finish()
    return "revoked", revoked_at, reason


def _generalized_time(fields: DerReader) -> datetime:
    if fields.tag() != GENERALIZED_TIME:
        raise FormatError("time must be a GeneralizedTime", offset=fields.at, reason="wrong_type")
    return read_time(fields)
