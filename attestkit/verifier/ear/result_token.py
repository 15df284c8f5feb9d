"""Signed attestation results: an AttestationResult as an EAT Attestation Result (EAR).

The profile is draft-ietf-rats-ear of an EAT (RFC 9711), encoded as a JWT (RFC 7519), or as a CWT
(RFC 8392) in COSE_Sign1. Relying parties check an EAR offline with the verifier's public key,
without evidence and collateral. The signature authenticates the verifier only.

An EAR is created from an AttestationResult, so rejected evidence has none. The EAR of simulated
evidence has the status `contraindicated` and `simulated` in the claim `attestkit.result`.

The EAR states what the evidence was bound to: `eat_nonce` is the nonce that the verifier compared,
`bound_to` and `report_data` are in `attestkit.result`. Evidence that is not bound to a nonce may be
old, and has the status `warning` at best. A relying party compares nonce or report data itself: an
EAR with a nonce that another party chose is not fresh.
"""

import hmac
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from attestkit._argument_checks import require_time_zone, wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._formats.compact_jws import to_base64url
from attestkit._package import own_version
from attestkit._sanitize import shown
from attestkit.attestation import Attestation
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.quote import Quote
from attestkit.report_data import ReportData, check_nonce
from attestkit.snp_report import SnpReport
from attestkit.verifier.ear.content import (
    EPOCH,
    LAST_SECOND,
    LONGEST_POLICY_ID,
    PROFILE,
    Ear,
    read_claims,
)
from attestkit.verifier.ear.signed_token import (
    EarKey,
    EarPublicKey,
    TokenFormat,
    sign_token,
    verify_token,
)
from attestkit.verifier.ear.token_claims import (
    LABELS,
    RESULT,
    Tier,
    gpu_submodules,
    trustworthiness_vector,
)
from attestkit.verifier.result import AttestationResult, verified_evidence

if TYPE_CHECKING:
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

LIFETIME: Final = timedelta(minutes=5)
"""Default lifetime of an EAR."""

LEEWAY: Final = timedelta(seconds=30)
"""Default tolerance for clock differences between verifier and relying party."""

_LONGEST: Final = timedelta(days=1)  # maximum lifetime
_MOST_LEEWAY: Final = timedelta(minutes=5)
_MOST_DELAY: Final = timedelta(hours=1)  # from the verification to the signature
_SECOND: Final = timedelta(seconds=1)


def policy_uri(policy: "AppraisalPolicy") -> str:
    """Return the URI of a policy: `ni:///sha-256;...` (RFC 6920) of its rules.

    The hash is over the TOML of the policy without comments and empty lines, in UTF-8.
    """
    rules = [line for line in policy.to_toml().split("\n") if line and not line.startswith("#")]
    return f"ni:///sha-256;{to_base64url(sha256(chr(10).join(rules).encode()))}"


def sign_ear(
    result: AttestationResult,
    key: EarKey,
    *,
    form: TokenFormat = "jwt",
    policy_id: str | None = None,
    lifetime: timedelta = LIFETIME,
    now: datetime | None = None,
    raw_evidence: bytes | None = None,
) -> bytes:
    """Return a signed EAR, with the nonce that the evidence is bound to and the policy's id.

    Equal arguments give an equal EAR. Without a nonce in the result, its status is `warning` at
    best.

    Args:
        result: Attestation result; not one at the time of an evidence bundle.
        key: Private key of the verifier.
        form: `jwt` (application/eat+jwt, ASCII) or `cose` (application/eat+cwt).
        policy_id: Name of the result's policy, in place of its `policy_uri`: a URI of at most 1,024
            characters. A `ni:` URI must be that of the result's policy.
        lifetime: Lifetime of 1 to 86,400 whole seconds.
        now: Time of the signature, with a time zone, at most an hour after the verification; None
            is the time of the verification, before which it must not be.
        raw_evidence: The verified evidence, to be included: the bytes that `Verifier.verify` got,
            or the encoding of its object. Results of `verify_many`, `verify_stream` and
            `ra_tls.verify`, and pickled results, do not have it.

    Raises:
        UsageError: If an argument is not valid, the time of the verification is that of an evidence
            bundle, `raw_evidence` is not the evidence of the result (`conflict`) or the result has
            none (`missing`), or the EAR is over 262,144 bytes.
    """
    if form not in ("jwt", "cose"):  # a tuple: `form` may not be hashable
        raise UsageError(f"form: must be jwt or cose, not {shown(form)}", reason="wrong_value")
    _check("raw_evidence", raw_evidence, bytes)
    if raw_evidence is not None:
        _compare_evidence(result, raw_evidence)
    _check("policy_id", policy_id, str, 1, LONGEST_POLICY_ID)
    _check_duration("lifetime", lifetime)
    if lifetime % _SECOND or not _SECOND <= lifetime <= _LONGEST:
        message = f"lifetime: must be 1 to 86400 whole seconds, not {lifetime}"
        raise UsageError(message, reason="out_of_range")
    issued = _issue_time(result, now, lifetime)
    claims: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": issued,
        "exp": issued + lifetime // _SECOND,
        "eat_nonce": result.nonce,
        "ear.verifier-id": {"developer": "attestkit", "build": f"attestkit {own_version()}"},
        "ear.raw-evidence": raw_evidence,
        "submods": {
            result.claims.platform: _appraisal_claims(result, policy_id),
            **gpu_submodules(result.gpu, fresh=result.fresh),
        },
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    return sign_token(_for_json(claims) if form == "jwt" else _for_cbor(claims), key, form)


def _compare_evidence(result: AttestationResult, raw: bytes) -> None:
    """Raise UsageError unless `raw` is the evidence that was verified."""
    evidence = verified_evidence(result)
    if isinstance(evidence, Quote | SnpReport):
        evidence = evidence.raw
    elif isinstance(evidence, Attestation):
        evidence = evidence.to_bytes()
    if not isinstance(evidence, bytes):
        message = "raw_evidence: the result has no evidence; use a result of Verifier.verify"
        raise UsageError(message, reason="missing")
    if not hmac.compare_digest(evidence, raw):
        message = "raw_evidence: must be the evidence that was verified; pass the same bytes"
        raise UsageError(message, reason="conflict")


def verify_ear(
    token: bytes | str,
    key: EarPublicKey,
    *,
    nonce: bytes | None = None,
    report_data: bytes | None = None,
    any_freshness: bool = False,
    report_data_is_fresh: bool = False,
    now: datetime,
    policy_id: str | None = None,
    leeway: timedelta = LEEWAY,
) -> Ear:
    """Verify an EAR, and return its content; the caller must check `status`.

    Exactly one of `nonce`, `report_data` and `any_freshness` is required. `status` is `warning` at
    best unless a nonce was compared, because the evidence may then be old.

    Args:
        token: EAR in either encoding, at most 262,144 bytes.
        key: Public key of the verifier, from a trusted source; it determines the algorithm.
        nonce: Expected nonce, 8 to 64 bytes: the one that this relying party chose.
        report_data: Expected report data of the evidence, 1 to 64 bytes that are not all zero,
            zero-padded.
        any_freshness: Accept an EAR with any nonce and report data, also of a different request.
        report_data_is_fresh: Whether `report_data` depends on a nonce of this relying party, as in
            a protocol that hashes it with other values. `status` is then that of the vector.
        now: Time of the verification, with a time zone.
        policy_id: Expected policy id; None accepts any.
        leeway: Tolerance for clock differences, 0 to 300 seconds.

    Raises:
        FormatError: If `token` is too large or not an EAR, or its claims are malformed.
        SignatureError: If the signature is not valid (`ear_bad_signature`), or a header parameter
            is not supported or not that of `key` (`ear_bad_header`).
        VerificationError: If the EAR is not the expected one (`ear_profile`, `ear_expired`,
            `ear_not_yet_valid`, `ear_nonce`, `ear_report_data`, `ear_policy`), or has `aud` or
            `nbf` (RFC 8392, 3.1), which are not supported (`ear_bad_claim`).
        UsageError: If an argument is not valid.
    """
    expected = _expected_report_data(nonce, report_data, any_freshness=any_freshness)
    if report_data_is_fresh and report_data is None:
        raise UsageError("report_data_is_fresh: needs report_data; pass it", reason="conflict")
    _check_duration("leeway", leeway)
    if not timedelta(0) <= leeway <= _MOST_LEEWAY:
        raise UsageError(f"leeway: must be 0 to 300 seconds: {leeway}", reason="out_of_range")
    require_time_zone("now", now)
    if isinstance(token, str):
        token = token.encode("utf-8", "replace")  # non-ASCII text is refused below
    if not isinstance(token, bytes):
        raise wrong_type("EAR", "bytes or str", token)
    form, claims = verify_token(token, key)
    ear = read_claims(form, claims)
    _check_time(ear, now, leeway)
    _compare(ear, nonce, expected)
    if policy_id is not None and ear.policy_id != policy_id:
        found, wanted = ascii(ear.policy_id)[:200], ascii(policy_id)[:200]
        message = f"EAR: policy must be {wanted}, not {found}; request a new EAR"
        raise VerificationError(message, reason="ear_policy")
    fresh = nonce is not None or report_data_is_fresh
    status = Tier.overall(ear.vector, simulated=ear.simulated, fresh=fresh)
    return ear._replace(status=max([status, *(gpu.status for gpu in ear.gpus.values())]))


def _expected_report_data(
    nonce: bytes | None, report_data: bytes | None, *, any_freshness: bool
) -> bytes | None:
    """Check that exactly one argument is given; return zero-padded report data, if given.

    Args:
        nonce: Expected nonce, 8 to 64 bytes, or None.
        report_data: Expected report data, at most 64 bytes, or None.
        any_freshness: Whether any nonce and report data are accepted.

    Returns:
        64 bytes; None without `report_data`.

    Raises:
        UsageError: If none or several are given, or one is not valid.
    """
    given = (nonce is not None) + (report_data is not None) + bool(any_freshness)
    if given != 1:
        raise UsageError(
            "nonce, report_data and any_freshness=True: give exactly one; without a nonce the "
            "evidence may be old",
            reason="conflict" if given else "missing",
        )
    if nonce is not None:
        check_nonce(nonce)
    if report_data is None:
        return None
    expected = ReportData.pad(report_data)
    if not any(expected):
        message = "report_data: must not be all zeros; pass a nonce or any_freshness=True"
        raise UsageError(message, reason="wrong_value")
    return expected


def _compare(ear: Ear, nonce: bytes | None, report_data: bytes | None) -> None:
    """Raise VerificationError unless nonce and report data of an EAR are those expected, if any."""
    if nonce is not None and not hmac.compare_digest(ear.nonce or b"", nonce):
        problem = "has no nonce" if ear.nonce is None else "its nonce is not the expected one"
        raise VerificationError(f"EAR: {problem}; request a new EAR", reason="ear_nonce")
    if report_data is not None:
        signed = ear.report_data.ljust(len(report_data), b"\0")
        if not hmac.compare_digest(signed, report_data):
            message = "EAR: report data are not the expected ones; request a new EAR"
            raise VerificationError(message, reason="ear_report_data")


def _issue_time(result: AttestationResult, now: datetime | None, lifetime: timedelta) -> int:
    """Return the issue time of an EAR, Unix seconds: `now`, or the time of the verification.

    Raises:
        UsageError: If the issue time is before the verification or over an hour later, if the EAR
            would expire after the year 9999, or if the result's time is that of an evidence bundle.
    """
    if any(step.check == "verification_time" for step in result.steps):
        raise UsageError(
            "result: verified at the time of an evidence bundle, which its creator chose; verify "
            "the bundle at the current time to sign the result",
            reason="conflict",
        )
    verified = _seconds("verified_at", result.verified_at)
    issued = verified if now is None else _seconds("now", now)
    if issued + lifetime // _SECOND > LAST_SECOND:
        message = "lifetime: the EAR would expire after the year 9999"
        raise UsageError(message, reason="out_of_range")
    if issued < verified:
        raise UsageError("now: must be at or after the verification time", reason="out_of_range")
    if timedelta(seconds=issued - verified) > _MOST_DELAY:
        message = "now: must be within an hour of the verification; verify the evidence again"
        raise UsageError(message, reason="out_of_range")
    return issued


def _check(
    name: str, value: object, kind: type[bytes | str], least: int = 0, most: int = sys.maxsize
) -> None:
    """Check that an argument is None, or has the right type and size.

    Args:
        name: Name of the argument in errors.
        value: The argument.
        kind: Type that it must have.
        least: Minimum number of bytes or characters.
        most: Maximum number of them.

    Raises:
        UsageError: If type or size are wrong.
    """
    if value is None:
        return
    if not isinstance(value, kind):
        raise wrong_type(name, kind.__name__, value)
    if not least <= len(value) <= most:
        unit = "bytes" if kind is bytes else "characters"
        message = f"{name}: must be {least} to {most} {unit}, not {len(value)}"
        raise UsageError(message, reason="wrong_size")


def _appraisal_claims(result: AttestationResult, policy_id: str | None) -> dict[str, Any]:
    vector, uri = trustworthiness_vector(result), policy_uri(result.policy)
    if policy_id is not None and policy_id.lower().startswith("ni:") and policy_id != uri:
        message = f"policy_id: a ni: URI must be that of the result's policy, {uri}; omit it"
        raise UsageError(message, reason="conflict")
    return {
        "ear.status": Tier.overall(vector, simulated=result.simulated, fresh=result.fresh),
        "ear.trustworthiness-vector": vector,
        RESULT: result.to_dict(),
        "ear.appraisal-policy-id": uri if policy_id is None else policy_id,
    }


def _for_json(claims: dict[str, Any]) -> dict[str, Any]:
    """Return claims for a JWT: bytes in base64url, tiers as names."""
    found = dict(claims)
    for name in ("eat_nonce", "ear.raw-evidence"):
        if name in found:
            found[name] = to_base64url(found[name])
    found["submods"] = {
        name: {**one, "ear.status": str(one["ear.status"])}
        for name, one in claims["submods"].items()
    }
    return found


def _for_cbor(claims: Mapping[str, Any]) -> dict[Any, Any]:
    """Return claims with CBOR labels as keys; claims without a label keep their name."""
    found: dict[Any, Any] = {}
    for name, value in claims.items():
        nested = isinstance(value, dict) and name != RESULT
        found[LABELS.get(name, name)] = _for_cbor(value) if nested else value
    return found


def _check_duration(name: str, value: object) -> None:
    if not isinstance(value, timedelta):
        raise wrong_type(name, "a timedelta", value)


def _check_time(ear: Ear, now: datetime, leeway: timedelta) -> None:
    lifetime = ear.expires_at - ear.issued_at
    if not _SECOND <= lifetime <= _LONGEST:
        raise FormatError("EAR: exp must be 1 s to 1 day after iat", reason="inconsistent")
    if ear.issued_at - now > leeway:
        raise VerificationError(
            f"EAR: not valid yet: issued at {ear.issued_at.isoformat()}, now {now.isoformat()}; "
            "check the clock",
            reason="ear_not_yet_valid",
        )
    if now - ear.expires_at >= leeway:
        raise VerificationError(
            f"EAR: expired {ear.expires_at.isoformat()}, now {now.isoformat()}; request a new one",
            reason="ear_expired",
        )


def _seconds(name: str, moment: datetime) -> int:
    require_time_zone(name, moment)
    seconds = (moment - EPOCH) // _SECOND
    if seconds < 0:
        raise UsageError(f"{name}: must not be before the year 1970", reason="out_of_range")
    return seconds
