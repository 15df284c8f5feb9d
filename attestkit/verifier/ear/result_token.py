"""Signed attestation results: an AttestationResult as an EAT Attestation Result (EAR).

The profile is draft-ietf-rats-ear of an EAT (RFC 9711), encoded as a JWT (RFC 7519), or as a CWT
(RFC 8392) in COSE_Sign1. Relying parties check an EAR offline with the verifier's public key,
without evidence and collateral. The signature authenticates the verifier only.

An EAR is created from an AttestationResult, so rejected evidence has none. The EAR of simulated
evidence has the status `contraindicated` and `simulated` in the claim `attestkit.result`.
"""

import hmac
import json
import sys
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple

import msgspec

from attestkit._argument_checks import require_time_zone, wrong_type
from attestkit._crypto.hashes import sha256
from attestkit._package import own_version
from attestkit._sanitize import one_line
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.report_data import check_nonce
from attestkit.verifier.ear.claims import (
    APPRAISAL,
    LABELS,
    REFUSED,
    RESULT,
    TOP,
    VECTOR,
    VERIFIER,
    Tier,
    claims_by_name,
    trustworthiness_vector,
)
from attestkit.verifier.ear.envelope import MAX_TOKEN, TokenFormat, sign_token, verify_token
from attestkit.verifier.ear.keys import EarKey, EarPublicKey, from_base64url, to_base64url
from attestkit.verifier.result import AttestationResult

if TYPE_CHECKING:
    from attestkit._reasons import FormatReason
    from attestkit.verifier.policy.appraisal_policy import AppraisalPolicy

__all__ = [
    "LEEWAY",
    "LIFETIME",
    "MAX_TOKEN",
    "PROFILE",
    "Ear",
    "EarKey",
    "EarPublicKey",
    "Tier",
    "policy_uri",
    "sign_ear",
    "verify_ear",
]

PROFILE: Final = "tag:github.com,2023:veraison/ear"
"""The `eat_profile` of an EAR."""

LIFETIME: Final = timedelta(minutes=5)
"""Default lifetime of an EAR."""

LEEWAY: Final = timedelta(seconds=30)
"""Default tolerance for clock differences between verifier and relying party."""

_LONGEST: Final = timedelta(days=1)  # maximum lifetime
_MOST_LEEWAY: Final = timedelta(minutes=5)
_SECOND: Final = timedelta(seconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LAST: Final = 253_402_300_799  # end of the year 9999, the limit of datetime
_MOST_POLICY: Final = 1024  # characters of a policy id
_LONGEST_PROBLEM: Final = 200  # characters of a problem, which may contain untrusted text


class Ear(NamedTuple):
    """Content of an EAR whose signature, time, nonce and policy have been checked."""

    form: TokenFormat
    status: Tier  # worst tier of `vector`
    vector: dict[str, int]  # trustworthiness claims by AR4SI name, -128 to 127
    simulated: bool  # whether the root is not the platform vendor's
    platform: str  # as `Claims.platform`; the name of the submodule
    result: dict[str, Any]  # as `AttestationResult.to_dict`
    issued_at: datetime
    expires_at: datetime
    nonce: bytes | None  # 8 to 64 bytes, to which the evidence is bound
    policy_id: str | None
    raw_evidence: bytes | None  # verified evidence, if included
    build: str  # of the verifier: name and version
    developer: str


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
    policy: "AppraisalPolicy | None" = None,
    policy_id: str | None = None,
    lifetime: timedelta = LIFETIME,
    now: datetime | None = None,
    raw_evidence: bytes | None = None,
) -> bytes:
    """Return a signed EAR, which contains the nonce that the evidence is bound to.

    Equal arguments give an equal EAR.

    Args:
        result: Attestation result.
        key: Private key of the verifier.
        form: `jwt` (application/eat+jwt, ASCII) or `cose` (application/eat+cwt).
        policy: Policy that accepted the evidence (this is not checked). It determines the policy id
            (see `policy_uri`) and the claim `executables`.
        policy_id: Policy id instead of `policy_uri`: a URI of at most 1,024 characters.
        lifetime: Lifetime of 1 to 86,400 whole seconds.
        now: Time of the signature, with a time zone; None is the time of the verification.
        raw_evidence: Verified evidence to include.

    Raises:
        UsageError: If an argument is not valid, or the EAR is over 262,144 bytes.
    """
    if form not in ("jwt", "cose"):  # a tuple: `form` may not be hashable
        raise UsageError(f"form: {ascii(form)[:40]}, must be jwt or cose", reason="wrong_value")
    _check("raw_evidence", raw_evidence, bytes)
    _check("policy_id", policy_id, str, 1, _MOST_POLICY)
    if lifetime % _SECOND or not _SECOND <= lifetime <= _LONGEST:
        raise UsageError("lifetime: must be 1 to 86400 whole seconds", reason="out_of_range")
    issued = _seconds(result.verified_at if now is None else now)
    if issued + lifetime // _SECOND > _LAST:
        message = "lifetime: the EAR would expire after the year 9999"
        raise UsageError(message, reason="out_of_range")
    if policy is not None and policy_id is None:
        policy_id = policy_uri(policy)
    claims: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": issued,
        "exp": issued + lifetime // _SECOND,
        "eat_nonce": result.nonce,
        "ear.verifier-id": {"developer": "attestkit", "build": f"attestkit {own_version()}"},
        "ear.raw-evidence": raw_evidence,
        "submods": {result.claims.platform: _appraisal_claims(result, policy, policy_id)},
    }
    claims = {name: value for name, value in claims.items() if value is not None}
    return sign_token(_for_json(claims) if form == "jwt" else _for_cbor(claims), key, form)


def verify_ear(
    token: bytes | str,
    key: EarPublicKey,
    *,
    nonce: bytes | None,
    now: datetime,
    policy_id: str | None = None,
    leeway: timedelta = LEEWAY,
) -> Ear:
    """Verify an EAR, and return its content; the caller must check `status`.

    Args:
        token: EAR in either encoding, at most 262,144 bytes.
        key: Public key of the verifier, from a trusted source; it determines the algorithm.
        nonce: Expected nonce, 8 to 64 bytes. None, which must be passed explicitly, accepts an EAR
            with any nonce or without nonce: freshness is then not verified.
        now: Time of the verification, with a time zone.
        policy_id: Expected policy id; None accepts any.
        leeway: Tolerance for clock differences, 0 to 300 seconds.

    Raises:
        FormatError: If `token` is not an EAR.
        SignatureError: If the signature is not valid (`ear_bad_signature`), or a header parameter
            is not supported or of another key (`ear_bad_header`).
        VerificationError: If the EAR is not the expected one (`ear_profile`, `ear_expired`,
            `ear_not_yet_valid`, `ear_nonce`, `ear_policy`), or has `aud` or `nbf` (RFC 8392, 3.1),
            which are not supported (`ear_bad_claim`).
        UsageError: If an argument is not valid.
    """
    if nonce is not None:
        check_nonce(nonce)
    if not timedelta(0) <= leeway <= _MOST_LEEWAY:
        raise UsageError("leeway: out of range: must be 0 to 300 seconds", reason="out_of_range")
    require_time_zone("now", now)
    if isinstance(token, str):
        token = token.encode("utf-8", "replace")  # non-ASCII text is refused below
    if not isinstance(token, bytes):
        raise wrong_type("EAR", "bytes or str", token)
    form, claims = verify_token(token, key)
    ear = _read(form, claims if form == "jwt" else _from_cbor(claims))
    _check_time(ear, now, leeway)
    if nonce is not None and not hmac.compare_digest(ear.nonce or b"", nonce):
        problem = "no nonce" if ear.nonce is None else "another nonce than expected"
        raise VerificationError(f"EAR: {problem}; request a new EAR", reason="ear_nonce")
    if policy_id is not None and ear.policy_id != policy_id:
        has = ascii(ear.policy_id)[:200]
        raise VerificationError(f"EAR: appraised by another policy: {has}", reason="ear_policy")
    return ear


def _check(
    name: str, value: object, kind: type[bytes | str], least: int = 0, most: int = sys.maxsize
) -> None:
    """Check the type and size of an argument; None is valid."""
    if value is None:
        return
    if not isinstance(value, kind):
        raise wrong_type(name, kind.__name__, value)
    if not least <= len(value) <= most:
        unit = "bytes" if kind is bytes else "characters"
        raise UsageError(
            f"{name}: {len(value)} {unit}, must be {least} to {most}", reason="wrong_size"
        )


def _appraisal_claims(
    result: AttestationResult, policy: "AppraisalPolicy | None", policy_id: str | None
) -> dict[str, Any]:
    vector = trustworthiness_vector(result, policy)
    found: dict[str, Any] = {
        "ear.status": Tier.worst(vector),
        "ear.trustworthiness-vector": vector,
        RESULT: result.to_dict(),
    }
    if policy_id is not None:
        found["ear.appraisal-policy-id"] = policy_id
    return found


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


def _from_cbor(claims: Mapping[Any, Any]) -> dict[str, Any]:
    """Return claims with names as keys; types are not checked."""
    found = claims_by_name(claims, TOP)
    _rename(found, "ear.verifier-id", VERIFIER)
    if isinstance(submods := found.get("submods"), dict):
        for name in submods:
            _rename(submods, name, APPRAISAL)
            if isinstance(submods[name], dict):
                _rename(submods[name], "ear.trustworthiness-vector", VECTOR)
    return found


def _rename(claims: dict[Any, Any], name: object, labels: Mapping[str, int]) -> None:
    """Replace the keys of a claim that is a map by names."""
    if isinstance(value := claims.get(name), dict):
        claims[name] = claims_by_name(value, labels)


_Text = Annotated[str, msgspec.Meta(max_length=_MOST_POLICY)]
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=_LAST)]
_Claim = Annotated[int, msgspec.Meta(ge=-128, le=127)]


class _VerifierId(msgspec.Struct):
    build: _Text
    developer: _Text


class _Appraisal(msgspec.Struct):
    status: object = msgspec.field(name="ear.status")
    vector: dict[str, _Claim] = msgspec.field(name="ear.trustworthiness-vector")
    result: dict[str, Any] = msgspec.field(name=RESULT)
    policy_id: _Text | None = msgspec.field(name="ear.appraisal-policy-id", default=None)


class _Claims(msgspec.Struct):
    """Claims of an EAR, before the byte strings of a JWT are decoded."""

    iat: _Seconds
    exp: _Seconds
    verifier_id: _VerifierId = msgspec.field(name="ear.verifier-id")
    submods: Annotated[dict[str, _Appraisal], msgspec.Meta(min_length=1, max_length=1)]
    eat_nonce: object = None
    raw_evidence: object = msgspec.field(name="ear.raw-evidence", default=None)


def _read_nonce(form: TokenFormat, value: object, result: dict[str, Any]) -> bytes | None:
    """Return the nonce, which the result must be bound to; None if both have none."""
    nonce = _bytes("eat_nonce", value, form)
    if nonce is not None:
        try:
            check_nonce(nonce)
        except UsageError as error:
            raise FormatError(f"EAR: eat_{error}", reason="wrong_size") from error
    if (nonce is not None) != (result.get("bound_to") == "nonce"):
        text = f"EAR: eat_nonce does not match bound_to of {RESULT}"
        raise FormatError(text, reason="inconsistent")
    return nonce


def _read(form: TokenFormat, fields: dict[str, Any]) -> Ear:
    """Return the content of an EAR, after a check of all types."""
    _check_profile(fields)
    try:
        claims = msgspec.convert(fields, _Claims)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    [(platform, appraisal)] = claims.submods.items()
    result = appraisal.result
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:  # bytes in COSE
        message = f"EAR: {RESULT} cannot be represented in JSON: {error}"
        raise FormatError(message, reason="wrong_type") from error
    if result.get("platform") != platform:
        message = "EAR: the name of the submodule is not the platform"
        raise FormatError(message, reason="inconsistent")
    simulated = result.get("simulated")
    if not isinstance(simulated, bool):
        raise FormatError(f"EAR: {RESULT} has no boolean 'simulated'", reason="missing")
    return Ear(
        form=form,
        status=_status(appraisal, form, simulated=simulated),
        vector=appraisal.vector,
        simulated=simulated,
        platform=platform,
        result=result,
        issued_at=_EPOCH + timedelta(seconds=claims.iat),
        expires_at=_EPOCH + timedelta(seconds=claims.exp),
        nonce=_read_nonce(form, claims.eat_nonce, result),
        policy_id=appraisal.policy_id,
        raw_evidence=_bytes("ear.raw-evidence", claims.raw_evidence, form),
        build=claims.verifier_id.build,
        developer=claims.verifier_id.developer,
    )


def _invalid(problem: str) -> FormatError:
    """Return the error for a message of msgspec."""
    reason: FormatReason = "wrong_value"
    if "missing required field" in problem:
        reason = "missing"
    elif ", got `" in problem:  # "Expected `int`, got `str`"
        reason = "wrong_type"
    elif "`str` of length" in problem:
        reason = "too_large"
    elif "of length" in problem:
        reason = "wrong_size"
    return FormatError(f"EAR: {one_line(problem, _LONGEST_PROBLEM)}", reason=reason)


def _check_profile(claims: dict[str, Any]) -> None:
    """Check the profile, and reject claims that restrict the token's use."""
    if (profile := claims.get("eat_profile")) != PROFILE:
        message = f"EAR: eat_profile: {ascii(profile)[:200]}, must be {PROFILE}"
        raise VerificationError(message, reason="ear_profile")
    for name in REFUSED:
        if name in claims:
            raise VerificationError(f"EAR: unsupported claim: {name}", reason="ear_bad_claim")


def _status(appraisal: _Appraisal, form: TokenFormat, *, simulated: bool) -> Tier:
    """Return the status of an appraisal; FormatError unless it is the worst tier of its claims."""
    value = appraisal.status
    tiers: dict[object, Tier] = {str(tier) if form == "jwt" else int(tier): tier for tier in Tier}
    if type(value) not in {int, str} or value not in tiers:
        raise FormatError("EAR: ear.status is not a trustworthiness tier", reason="wrong_value")
    status, worst = tiers[value], Tier.worst(appraisal.vector)
    if simulated:
        worst = Tier.CONTRAINDICATED
    if status is not worst:
        message = f"EAR: ear.status is {status}, but the worst claim has the tier {worst}"
        raise FormatError(message, reason="inconsistent")
    return status


def _check_time(ear: Ear, now: datetime, leeway: timedelta) -> None:
    lifetime = ear.expires_at - ear.issued_at
    if not _SECOND <= lifetime <= _LONGEST:
        raise FormatError("EAR: exp is not after iat, or over a day later", reason="inconsistent")
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


def _seconds(moment: datetime) -> int:
    require_time_zone("now", moment)
    seconds = (moment - _EPOCH) // _SECOND
    if seconds < 0:
        raise UsageError("now: out of range: before the year 1970", reason="out_of_range")
    return seconds


def _bytes(name: str, value: object, form: TokenFormat) -> bytes | None:
    if value is None:
        return None
    if form == "jwt" and isinstance(value, str):
        return from_base64url(value, f"EAR: {name}")
    if form == "jwt" or not isinstance(value, bytes):
        raise FormatError(f"EAR: {name}: wrong type", reason="wrong_type")
    return value
