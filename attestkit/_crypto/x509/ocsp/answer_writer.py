"""Writer of OCSP answers, for simulated responders."""

from collections.abc import Callable
from datetime import datetime, timezone
from typing import NamedTuple

from attestkit._crypto.der import (
    BIT_STRING,
    ENUMERATED,
    GENERALIZED_TIME,
    OCTET_STRING,
    context,
    encode_element,
    encode_sequence,
)
from attestkit._crypto.p384 import ECDSA_SHA384
from attestkit._crypto.x509.cert_path import read_path_certificate
from attestkit._crypto.x509.ocsp.answer import BASIC, ERRORS, REASONS, CertStatus, RevocationReason
from attestkit._crypto.x509.ocsp.request import CertId, encode_cert_id, encode_nonce
from attestkit._crypto.x509.simulated.certificate_encoder import key_id
from attestkit.errors import UsageError


class OcspResponder(NamedTuple):
    """A delegated responder (RFC 6960, section 4.2.2.2): its certificate and signing function."""

    certificate: bytes  # in DER; P-384, with the extended key usage OCSPSigning
    sign: Callable[[bytes], bytes]  # ECDSA with SHA-384 over the given bytes, in DER


def write_ocsp_answer(
    responder: OcspResponder,
    cert_id: CertId,
    this_update: datetime,
    next_update: datetime,
    *,
    status: CertStatus = "good",
    reason: RevocationReason | None = None,
    revoked_at: datetime | None = None,
    nonce: bytes | None = None,
) -> bytes:
    """Return the DER of an answer, in the form of NVIDIA's.

    Args:
        responder: The responder, which is identified by its key.
        cert_id: The certificate, as in the request.
        this_update: Start of the validity, and time of the signature; aware, with a resolution of
            seconds, as all times.
        next_update: End of the validity.
        status: Status of the certificate.
        reason: Reason of a revocation; None leaves it out.
        revoked_at: Time of a revocation; None is `this_update`.
        nonce: Nonce of the request, which is returned in the extensions of the answer.

    Raises:
        FormatError: If the certificate of the responder is malformed.
        UsageError: If the nonce is empty, or over 128 bytes.
    """
    spki = read_path_certificate(responder.certificate).spki
    if status == "revoked":
        cause = b"" if reason is None else encode_element(context(0), _enumerated(_number(reason)))
        encoded = encode_element(context(1), _generalized_time(revoked_at or this_update) + cause)
    else:
        encoded = encode_element(0x80 if status == "good" else 0x82, b"")
    single = encode_sequence(
        encode_cert_id(cert_id),
        encoded,
        _generalized_time(this_update),
        encode_element(context(0), _generalized_time(next_update)),
    )
    signed = encode_sequence(
        encode_element(context(2), encode_element(OCTET_STRING, key_id(spki))),
        _generalized_time(this_update),
        encode_sequence(single),
        b"" if nonce is None else encode_element(context(1), encode_nonce(nonce)),
    )
    basic = encode_sequence(
        signed,
        ECDSA_SHA384,
        encode_element(BIT_STRING, b"\0" + responder.sign(signed)),
        encode_element(context(0), encode_sequence(responder.certificate)),
    )
    wrapped = encode_sequence(BASIC, encode_element(OCTET_STRING, basic))
    return encode_sequence(_enumerated(0), encode_element(context(0), wrapped))


def write_ocsp_error(problem: str) -> bytes:
    """Return the DER of an OCSPResponse with an error status and no answer.

    `problem` is the error's name: "malformed request", "internal error", "try later", "signature
    required" or "unauthorized" (30030a0106).

    Raises:
        UsageError: If the error is not one of RFC 6960, section 4.2.1.
    """
    for number, text in ERRORS.items():
        if text == problem:
            return encode_sequence(_enumerated(number))
    message = f"OCSP error: must be one of {', '.join(ERRORS.values())}"
    raise UsageError(message, reason="wrong_value")


def _number(reason: RevocationReason) -> int:
    return next(number for number, name in REASONS.items() if name == reason)


def _enumerated(number: int) -> bytes:
    return encode_element(ENUMERATED, bytes([number]))


def _generalized_time(moment: datetime) -> bytes:
    text = moment.astimezone(timezone.utc).strftime("%Y%m%d%H%M%SZ")
    return encode_element(GENERALIZED_TIME, text.encode())
