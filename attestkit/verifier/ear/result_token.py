"""Signed attestation results: an AttestationResult as an EAT Attestation Result (EAR).

The profile is draft-ietf-rats-ear of an EAT (RFC 9711), encoded as a JWT (RFC 7519), or as a CWT
(RFC 8392) in COSE_Sign1. Relying parties check an EAR offline with the verifier's public key,
without evidence and collateral. The signature authenticates the verifier only.

An EAR is created from an AttestationResult, so rejected evidence has none. The EAR of simulated
evidence has the status `contraindicated` and `simulated` in the claim `attestkit.result`.
"""

import hmac
import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from attestkit._crypto.hashes import sha256
from attestkit._version import own_version
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.verifier.ear.claims import (
    APPRAISAL,
    REFUSED,
    RESULT,
    TOP,
    VECTOR,
    VERIFIER,
    Tier,
    claims_by_label,
    claims_by_name,
    trustworthiness_vector,
)
from attestkit.verifier.ear.envelope import MAX_TOKEN, TokenFormat, sign_token, verify_token
from attestkit.verifier.ear.keys import EarKey, EarPublicKey, from_base64url, to_base64url
from attestkit.verifier.policy.toml_writer import to_toml
from attestkit.verifier.result import AttestationResult

if TYPE_CHECKING:
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
    "check_nonce",
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
_NONCE: Final = (8, 64)  # bytes (RFC 9711, 4.1)
_MOST_POLICY: Final = 1024  # characters of a policy id


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
    nonce: bytes | None  # 8 to 64 bytes, from the relying party
    policy_id: str | None
    raw_evidence: bytes | None  # verified evidence, if included
    build: str  # of the verifier: name and version
    developer: str


def policy_uri(policy: "AppraisalPolicy") -> str:
    """Return the URI of a policy: `ni:///sha-256;...` (RFC 6920) of its rules.

    The hash is over the TOML of `policy_file.to_toml` without comments and empty lines, in UTF-8.
    """
    rules = [line for line in to_toml(policy).split("\n") if line and not line.startswith("#")]
    return f"ni:///sha-256;{to_base64url(sha256(chr(10).join(rules).encode()))}"


def sign_ear(
    result: AttestationResult,
    key: EarKey,
    *,
    form: TokenFormat = "jwt",
    nonce: bytes | None = None,
    policy: "AppraisalPolicy | None" = None,
    policy_id: str | None = None,
    lifetime: timedelta = LIFETIME,
    now: datetime | None = None,
    raw_evidence: bytes | None = None,
) -> bytes:
    """Return a signed EAR; it is deterministic.

    Args:
        result: Attestation result.
        key: Private key of the verifier.
        form: `jwt` (application/eat+jwt, ASCII) or `cose` (application/eat+cwt).
        nonce: 8 to 64 bytes from the relying party, for freshness.
        policy: Policy that accepted the evidence, which is not checked. It gives the policy id, see
            `policy_uri`, and the claim `executables`.
        policy_id: Policy id instead of `policy_uri`: a URI of at most 1,024 characters.
        lifetime: Lifetime of 1 to 86,400 whole seconds.
        now: Time of the signature, aware; None is the time of the verification.
        raw_evidence: Verified evidence to include.

    Raises:
        UsageError: If an argument is not valid, or the EAR is over 262,144 bytes.
    """
    if form not in ("jwt", "cose"):  # a tuple: `form` may not be hashable
        raise UsageError(
            f"form: unknown: {ascii(form)[:40]}, must be jwt or cose", reason="wrong_value"
        )
    check_nonce(nonce)
    if raw_evidence is not None and not isinstance(raw_evidence, bytes):
        raise UsageError(
            f"raw_evidence: wrong type: {type(raw_evidence).__name__}, must be bytes",
            reason="wrong_type",
        )
    if lifetime % _SECOND or not _SECOND <= lifetime <= _LONGEST:
        raise UsageError(
            "lifetime: out of range: must be 1 to 86400 whole seconds", reason="out_of_range"
        )
    if policy_id is not None:
        _check_policy_id(policy_id)
    issued = _seconds(result.verified_at if now is None else now)
    if issued + lifetime // _SECOND > _LAST:
        raise UsageError(
            "lifetime: out of range: the EAR would expire after the year 9999",
            reason="out_of_range",
        )
    if policy is not None and policy_id is None:
        policy_id = policy_uri(policy)
    claims: dict[str, Any] = {
        "eat_profile": PROFILE,
        "iat": issued,
        "exp": issued + lifetime // _SECOND,
        "eat_nonce": nonce,
        "ear.verifier-id": {"developer": "attestkit", "build": f"attestkit {own_version()}"},
        "ear.raw-evidence": raw_evidence,
        "submods": {result.claims.platform: _appraisal(result, policy, policy_id)},
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
        nonce: Expected nonce, 8 to 64 bytes. None, which must be passed explicitly, accepts any or
            none: then freshness is not verified.
        now: Aware datetime.
        policy_id: Expected policy id; None accepts any.
        leeway: Tolerance for clock differences, 0 to 300 seconds.

    Raises:
        FormatError: If it is not an EAR.
        SignatureError: If the signature is not valid (`ear_bad_signature`), or a header parameter
            is not supported or of another key (`ear_bad_header`).
        VerificationError: If it is not the expected EAR: `ear_profile`, `ear_expired`,
            `ear_not_yet_valid`, `ear_nonce`, `ear_policy`; or it has `aud` or `nbf` (RFC 8392,
            3.1), which are not supported: `ear_bad_claim`.
        UsageError: If an argument is not valid.
    """
    check_nonce(nonce)
    if not timedelta(0) <= leeway <= _MOST_LEEWAY:
        raise UsageError("leeway: out of range: must be 0 to 300 seconds", reason="out_of_range")
    if now.utcoffset() is None:
        raise UsageError("now: datetime without time zone", reason="wrong_value")
    if isinstance(token, str):
        token = token.encode("utf-8", "replace")  # non-ASCII text is refused below
    if not isinstance(token, bytes):
        raise UsageError(
            f"EAR: wrong type: {type(token).__name__}, must be bytes or str", reason="wrong_type"
        )
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


def check_nonce(nonce: bytes | None) -> None:
    """Check the type and size of a nonce.

    Raises:
        UsageError: If it is not 8 to 64 `bytes`.
    """
    if nonce is not None and not isinstance(nonce, bytes):
        raise UsageError(
            f"nonce: wrong type: {type(nonce).__name__}, must be bytes", reason="wrong_type"
        )
    least, most = _NONCE
    if nonce is not None and not least <= len(nonce) <= most:
        raise UsageError(
            f"nonce: wrong size: {len(nonce)} bytes, must be {least} to {most}", reason="wrong_size"
        )


def _check_policy_id(policy_id: str) -> None:
    if not isinstance(policy_id, str):
        raise UsageError(
            f"policy_id: wrong type: {type(policy_id).__name__}, must be str", reason="wrong_type"
        )
    if not 0 < len(policy_id) <= _MOST_POLICY:
        raise UsageError(
            f"policy_id: wrong size: {len(policy_id)} characters, must be 1 to {_MOST_POLICY}",
            reason="wrong_size",
        )


def _appraisal(
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
    """Return claims with bytes in base64url, and tiers by name."""
    found = dict(claims)
    for name in ("eat_nonce", "ear.raw-evidence"):
        if name in found:
            found[name] = to_base64url(found[name])
    found["submods"] = {
        name: {**one, "ear.status": str(one["ear.status"])}
        for name, one in claims["submods"].items()
    }
    return found


def _for_cbor(claims: dict[str, Any]) -> dict[Any, Any]:
    """Return claims with CBOR labels as keys."""
    found = dict(claims)
    found["ear.verifier-id"] = claims_by_label(claims["ear.verifier-id"], VERIFIER)
    found["submods"] = {
        name: claims_by_label(
            {
                **one,
                "ear.status": int(one["ear.status"]),
                "ear.trustworthiness-vector": claims_by_label(
                    one["ear.trustworthiness-vector"], VECTOR
                ),
            },
            APPRAISAL,
        )
        for name, one in claims["submods"].items()
    }
    return claims_by_label(found, TOP)


def _from_cbor(claims: Mapping[Any, Any]) -> dict[str, Any]:
    """Return claims with names as keys; tiers and bytes are not converted."""
    found = claims_by_name(claims, TOP)
    found["ear.verifier-id"] = claims_by_name(_object(found, "ear.verifier-id"), VERIFIER)
    submods = _object(found, "submods")
    found["submods"] = {name: claims_by_name(_object(submods, name), APPRAISAL) for name in submods}
    for one in found["submods"].values():
        vector = _object(one, "ear.trustworthiness-vector")
        one["ear.trustworthiness-vector"] = claims_by_name(vector, VECTOR)
    return found


def _read(form: TokenFormat, claims: dict[str, Any]) -> Ear:
    """Return the content of an EAR, after a check of all types."""
    _check_profile(claims)
    submods, platform = _single_submodule(claims)
    appraisal = _object(submods, platform)
    vector = _object(appraisal, "ear.trustworthiness-vector")
    for name in vector:
        _number(vector, name, -128, 127)
    result = _object(appraisal, RESULT)
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:  # bytes in COSE
        raise FormatError(
            f"EAR: {RESULT} is not representable in JSON: {error}", reason="wrong_type"
        ) from error
    if result.get("platform") != platform:
        raise FormatError(
            f"EAR: the submodule's name is not the platform of its {RESULT}", reason="inconsistent"
        )
    verifier = _object(claims, "ear.verifier-id")
    nonce = _bytes(claims, "eat_nonce", form)
    if nonce is not None and not _NONCE[0] <= len(nonce) <= _NONCE[1]:
        raise FormatError(
            f"EAR: wrong size of eat_nonce: {len(nonce)} bytes, must be {_NONCE[0]} to {_NONCE[1]}",
            reason="wrong_size",
        )
    simulated = result.get("simulated")
    if not isinstance(simulated, bool):
        raise FormatError(f"EAR: {RESULT} has no boolean 'simulated'", reason="missing")
    return Ear(
        form=form,
        status=_status(appraisal, vector, form, simulated=simulated),
        vector=vector,
        simulated=simulated,
        platform=platform,
        result=result,
        issued_at=_moment(claims, "iat"),
        expires_at=_moment(claims, "exp"),
        nonce=nonce,
        policy_id=_text(appraisal, "ear.appraisal-policy-id")
        if "ear.appraisal-policy-id" in appraisal
        else None,
        raw_evidence=_bytes(claims, "ear.raw-evidence", form),
        build=_text(verifier, "build"),
        developer=_text(verifier, "developer"),
    )


def _check_profile(claims: dict[str, Any]) -> None:
    """Check the profile, and reject claims that restrict the token's use."""
    if (profile := claims.get("eat_profile")) != PROFILE:
        raise VerificationError(
            f"EAR: wrong eat_profile: {ascii(profile)[:200]}, must be {PROFILE}",
            reason="ear_profile",
        )
    for name in REFUSED:
        if name in claims:
            raise VerificationError(f"EAR: unsupported claim: {name}", reason="ear_bad_claim")


def _single_submodule(claims: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the submodules, which must be one, and its name."""
    submods = _object(claims, "submods")
    if len(submods) != 1:
        raise FormatError(f"EAR: {len(submods)} submodules, must be 1", reason="wrong_size")
    [platform] = submods
    if not isinstance(platform, str):
        raise FormatError("EAR: submodule name is not a string", reason="wrong_type")
    return submods, platform


def _status(
    appraisal: dict[str, Any], vector: dict[str, int], form: TokenFormat, *, simulated: bool
) -> Tier:
    """Return the overall status, which must be the worst tier of its claims."""
    value = appraisal.get("ear.status")
    tiers: dict[object, Tier] = {str(tier) if form == "jwt" else int(tier): tier for tier in Tier}
    if type(value) not in {int, str} or value not in tiers:
        raise FormatError("EAR: ear.status is not a trustworthiness tier", reason="wrong_value")
    status, worst = tiers[value], Tier.worst(vector)
    if simulated:
        worst = Tier.CONTRAINDICATED
    if status is not worst:
        raise FormatError(
            f"EAR: ear.status is {status}, but its claims amount to {worst}", reason="inconsistent"
        )
    return status


def _check_time(ear: Ear, now: datetime, leeway: timedelta) -> None:
    lifetime = ear.expires_at - ear.issued_at
    if not _SECOND <= lifetime <= _LONGEST:
        raise FormatError(
            "EAR: exp is not after iat, or over a day after it", reason="inconsistent"
        )
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
    if moment.utcoffset() is None:
        raise UsageError("now: datetime without time zone", reason="wrong_value")
    seconds = (moment - _EPOCH) // _SECOND
    if seconds < 0:
        raise UsageError("now: out of range: before the year 1970", reason="out_of_range")
    return seconds


def _object(fields: Mapping[Any, Any], name: str) -> dict[Any, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        problem = "missing" if value is None else "not a map"
        raise FormatError(
            f"EAR: {_shorten(name)}: {problem}", reason="missing" if value is None else "wrong_type"
        )
    return value


def _text(fields: Mapping[Any, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str):
        raise FormatError(
            f"EAR: {_shorten(name)}: missing or not a string",
            reason="missing" if value is None else "wrong_type",
        )
    if len(value) > _MOST_POLICY:
        raise FormatError(
            f"EAR: {_shorten(name)}: {len(value)} characters, at most {_MOST_POLICY}",
            reason="too_large",
        )
    return value


def _number(fields: Mapping[Any, Any], name: str, least: int, most: int) -> int:
    value = fields.get(name)
    if type(value) is not int:
        raise FormatError(
            f"EAR: {_shorten(name)}: missing or not an integer",
            reason="missing" if value is None else "wrong_type",
        )
    if not least <= value <= most:
        raise FormatError(
            f"EAR: {_shorten(name)}: out of range, must be {least} to {most}", reason="wrong_value"
        )
    return value


def _moment(fields: Mapping[Any, Any], name: str) -> datetime:
    return _EPOCH + timedelta(seconds=_number(fields, name, 0, _LAST))


def _bytes(fields: Mapping[Any, Any], name: str, form: TokenFormat) -> bytes | None:
    value = fields.get(name)
    if value is None:
        return None
    if form == "jwt" and isinstance(value, str):
        return from_base64url(value, f"EAR: {name}")
    if form == "jwt" or not isinstance(value, bytes):
        raise FormatError(f"EAR: {name}: wrong type", reason="wrong_type")
    return value


def _shorten(name: object) -> str:
    return ascii(name)[:40]
