"""Check of OCSP answers about a certificate (RFC 6960, section 3.2)."""

import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Final, Literal, NamedTuple

from attestkit._crypto.p384 import ECDSA_SHA384, load_p384_key
from attestkit._crypto.x509.cert_path import (
    PathCertificate,
    check_issued,
    describe_period,
    may,
    read_usages,
)
from attestkit._crypto.x509.names import public_key_bits
from attestkit._crypto.x509.ocsp.answer import OcspAnswer, RevocationReason, read_ocsp_answer
from attestkit._crypto.x509.ocsp.request import cert_id
from attestkit._crypto.x509.path_rules import p384_rules, read_kept_certificate
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
)

CLOCK_SKEW: Final = timedelta(minutes=5)
"""Allowed difference of the responder's clock."""

MAX_ANSWERS: Final = 512
"""Answers of one call; 64 devices have 192 certificates of their own."""

MAX_CHECKED: Final = 16
"""Answers about one certificate whose signatures are verified: the newest."""

_EXTENDED_KEY_USAGE, _NO_CHECK = "2.5.29.37", "1.3.6.1.5.5.7.48.1.5"
_OCSP_SIGNING: Final = "1.3.6.1.5.5.7.3.9"
_DIGITAL_SIGNATURE: Final = 0  # bit of the key usage (RFC 5280, 4.2.1.3)
# One responder answers about all certificates of an issuer.
_RULES: Final = p384_rules(256, _EXTENDED_KEY_USAGE, _NO_CHECK)


class OcspStatus(NamedTuple):
    """Status in a verified answer, with reason and time of a revocation, and answer's validity."""

    status: Literal["good", "hold", "revoked"]  # hold: revoked with the reason certificateHold
    reason: RevocationReason | None  # None if good
    revoked_at: datetime | None  # aware, as all times
    this_update: datetime
    next_update: datetime


class _Expected(NamedTuple):
    """The arguments of `KeptStatuses.check` of the same names."""

    now: datetime
    max_age: timedelta | None
    grace: timedelta


class KeptStatuses:
    """Statuses of certificates from given OCSP answers, each cached while its answer is valid.

    Args:
        responses: Answers in DER, also about other certificates.
    """

    def __init__(self, responses: Sequence[bytes]) -> None:
        self._responses = tuple(responses)
        # A status, its first and its last time, by certificate, issuer, and options.
        self._kept: dict[tuple[object, ...], tuple[OcspStatus, datetime, datetime]] = {}

    def check(
        self,
        certificate: bytes,
        issuer: bytes,
        now: datetime,
        max_age: timedelta | None = None,
        grace: timedelta = timedelta(),
    ) -> OcspStatus:
        """Return the status of a certificate: cached, or from the answers about it.

        Of several valid answers, one with the status "revoked" is used, else the newest. Only the
        16 newest answers are verified.

        Args:
            certificate: The certificate in DER.
            issuer: The verified certificate of its issuer in DER.
            now: Time of the verification, aware.
            max_age: Maximum time since an answer's thisUpdate; None allows any until its
                nextUpdate.
            grace: How long after its nextUpdate an answer is accepted; the responder's certificate
                must still be valid.

        Raises:
            CollateralError: If no answer is about the certificate (`missing`), or the responder
                returned an error instead.
            FormatError: If a certificate is malformed, or no answer is about it and one is
                malformed.
            SignatureError: If the answer is not of a responder that the issuer authorized, its
                signature is not valid, or the certificate is unknown.
            CollateralExpiredError: If answer or responder certificate are not valid at `now`, or
                the answer is older than `max_age`.
        """
        key = certificate, issuer, max_age, grace
        kept = self._kept.get(key)
        if kept is not None and kept[1] <= now <= kept[2]:
            return kept[0]
        expected = _Expected(now, max_age, grace)
        status, answer = _find_status(self._responses, certificate, issuer, expected)
        if answer is not None and (period := _accepted_period(answer, expected)) is not None:
            if len(self._kept) >= MAX_ANSWERS:
                self._kept.clear()
            self._kept[key] = status, *period
        return status

    def __reduce__(self) -> tuple[type["KeptStatuses"], tuple[tuple[bytes, ...]]]:
        return KeptStatuses, (self._responses,)


def _accepted_period(answer: OcspAnswer, expected: _Expected) -> tuple[datetime, datetime] | None:
    """Return first and last time at which `_check_times` accepts an answer; None on overflow."""
    _, max_age, grace = expected
    responder = answer.responder
    try:
        first, last = answer.this_update - CLOCK_SKEW, answer.next_update + CLOCK_SKEW + grace
        last = last if max_age is None else min(last, answer.this_update + max_age)
    except OverflowError:
        return None
    return max(first, responder.valid_from), min(last, responder.valid_until)


def _find_status(
    responses: Sequence[bytes], certificate: bytes, issuer: bytes, expected: _Expected
) -> tuple[OcspStatus, OcspAnswer | None]:
    """Return the status of a certificate, and the answer that states it.

    The answer is None if several are about the certificate. `responses`, `certificate` and `issuer`
    (its issuer's certificate) are in DER.
    """
    subject, authority = read_kept_certificate(certificate), read_kept_certificate(issuer)
    found = _answers_about(responses, subject, authority)
    if len(found) == 1:
        _check_answer(found[0], authority, expected)
        return _read_status(found[0].der), found[0]
    return _choose_status(found, authority, expected), None


def _choose_status(
    found: Sequence[OcspAnswer], authority: PathCertificate, expected: _Expected
) -> OcspStatus:
    """Return the status of several answers about a certificate: "revoked", else the newest."""
    valid: list[OcspAnswer] = []
    problem: AttestKitError | None = None
    newest = sorted(found, key=lambda each: each.this_update, reverse=True)
    for answer in newest[:MAX_CHECKED]:
        try:
            _check_answer(answer, authority, expected)
        except AttestKitError as error:
            problem = problem or error
        else:
            valid.append(answer)
    if not valid:
        assert problem is not None
        raise problem
    statuses = [_read_status(answer.der) for answer in valid]
    return next((each for each in statuses if each.status == "revoked"), statuses[0])


def _answers_about(
    responses: Sequence[bytes], subject: PathCertificate, authority: PathCertificate
) -> list[OcspAnswer]:
    """Return those of `responses` (DER) that are about the certificate `subject`, at least one.

    `authority` is the certificate of its issuer.

    Raises:
        CollateralError: If there is none, or the responder returned an error instead.
        FormatError: If there is none, and one answer is malformed.
    """
    found: list[OcspAnswer] = []
    serial = subject.serial
    problem: AttestKitError | None = None
    for response in responses:
        try:
            answer = read_ocsp_answer(response)
        except (FormatError, CollateralError) as error:
            problem = problem or error
            continue
        # The serial number first: it saves the hashes for most answers.
        if answer.cert_id.serial == serial and _is_about(response, subject.der, authority.der):
            found.append(answer)
    if not found:
        raise problem or CollateralError(
            f"OCSP: no answer about the certificate with serial number {subject.serial:x}; "
            "fetch the endorsements",
            reason="missing",
        )
    return found


@lru_cache(maxsize=512)
def _is_about(response: bytes, certificate: bytes, issuer: bytes) -> bool:
    asked = read_ocsp_answer(response).cert_id
    subject, authority = read_kept_certificate(certificate), read_kept_certificate(issuer)
    return asked == cert_id(subject, authority, asked.hash_name)


def _check_answer(answer: OcspAnswer, authority: PathCertificate, expected: _Expected) -> None:
    """Check responder, signature, times, and that the status is not "unknown"."""
    _check_signed(answer.der, authority.der)
    _check_times(answer, expected)
    if answer.status == "unknown":
        message = "OCSP answer: the responder does not know the certificate"
        raise SignatureError(message, reason="ocsp_unknown")


@lru_cache(maxsize=512)
def _check_signed(response: bytes, issuer: bytes) -> None:
    """Check the responder's certificate and the signature of `response`.

    `response` is an OCSPResponse and `issuer` the certificate of the checked certificate's issuer,
    both in DER. These checks do not depend on the time, so the result is cached.

    Raises:
        SignatureError: If the issuer did not issue the responder's certificate, or it must not sign
            answers (`ocsp_responder`), or the signature is not valid (`ocsp_bad_signature`).
    """
    answer, authority = read_ocsp_answer(response), read_kept_certificate(issuer)
    responder = answer.responder
    named, issued_by = ("OCSP responder", responder), ("the issuer of the certificate", authority)
    try:
        check_issued(named, issued_by, "ocsp_responder", _RULES)
    except SignatureError as error:
        raise SignatureError(f"OCSP answer: {error}", reason="ocsp_responder") from error
    if problem := _responder_problem(answer):
        raise SignatureError(f"OCSP responder: {problem}", reason="ocsp_responder")
    if answer.algorithm != ECDSA_SHA384:
        message = f"OCSP answer: signature algorithm must be {_RULES.names}"
        raise SignatureError(message, reason="ocsp_bad_signature")
    try:
        load_p384_key(responder.spki).verify_der(answer.signature, answer.signed)
    except SignatureError as error:
        message = "OCSP answer: not signed by its responder"
        raise SignatureError(message, reason="ocsp_bad_signature") from error


def _responder_problem(answer: OcspAnswer) -> str | None:
    """Return why the responder's certificate is not valid (RFC 6960, 4.2.2.2); None if it is."""
    responder = answer.responder
    if unknown := responder.critical - _RULES.critical:
        return f"unknown critical extension: {min(unknown)}"
    usages = responder.extensions.get(_EXTENDED_KEY_USAGE)
    if usages is None or _OCSP_SIGNING not in read_usages(usages):
        return "its extended key usage does not allow it to sign OCSP answers"
    if responder.authority or not may(responder, _DIGITAL_SIGNATURE):
        return "must be an end-entity certificate for digital signatures"
    if answer.name is not None and answer.name != responder.subject:
        return "its name is not that in the answer"
    if answer.key_hash is not None:
        expected = hashlib.sha1(public_key_bits(responder.spki), usedforsecurity=False).digest()
        if not hmac.compare_digest(answer.key_hash, expected):
            return "its key is not that in the answer"
    return None


def _check_times(answer: OcspAnswer, expected: _Expected) -> None:
    now, max_age, grace = expected
    responder = answer.responder
    if not responder.valid_from <= now <= responder.valid_until:
        period = describe_period(responder.valid_from, responder.valid_until, now)
        raise CollateralExpiredError(f"OCSP responder: valid {period}", reason="cert_expired")
    first, last = answer.this_update, answer.next_update
    # Differences, because a time plus or minus skew and grace can overflow.
    if first - now > CLOCK_SKEW:
        message = f"OCSP answer: valid {describe_period(first, last, now)}"
        raise CollateralExpiredError(message, reason="ocsp_not_yet_valid")
    if now - last - CLOCK_SKEW > grace or last < first:
        message = f"OCSP answer: valid {describe_period(first, last, now)}"
        raise CollateralExpiredError(message, reason="ocsp_expired")
    if max_age is not None and now - first > max_age:
        period = describe_period(first, last, now)
        message = f"OCSP answer: older than {max_age}: valid {period}; fetch a new one"
        raise CollateralExpiredError(message, reason="ocsp_expired")


@lru_cache(maxsize=512)
def _read_status(response: bytes) -> OcspStatus:
    answer = read_ocsp_answer(response)
    status: Literal["good", "hold", "revoked"] = "good"
    if answer.status != "good":
        status = "hold" if answer.revocation_reason == "certificate_hold" else "revoked"
    return OcspStatus(
        status,
        answer.revocation_reason,
        answer.revoked_at,
        answer.this_update,
        answer.next_update,
    )
