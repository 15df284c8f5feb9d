"""Signed verdicts: an AttestationResult as an EAT Attestation Result, for parties further on.

The profile is EAR's (draft-ietf-rats-ear) of an EAT (RFC 9711), in one of two forms: a JWT (RFC
7519), or a CWT (RFC 8392) in COSE_Sign1. Who has the verifier's public key learns what was verified
without evidence, collateral or network; the private key says who verified, and nothing more.

An EAR is made of an AttestationResult alone, so there is none about evidence that was refused.
About simulated evidence there is one that no reader can take for the real thing: its status is
`contraindicated`, and our own claim says `simulated`.
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
    named,
    numbered,
    trust,
)
from attestkit.verifier.ear.envelope import MAX_TOKEN, Form, open_token, seal
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
"""How long an EAR is good for where nobody says another time."""

LEEWAY: Final = timedelta(seconds=30)
"""How far the clocks of who signs and who checks may differ where nobody says another time."""

_LONGEST: Final = timedelta(days=1)  # that an EAR may be good for
_MOST_LEEWAY: Final = timedelta(minutes=5)
_SECOND: Final = timedelta(seconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LAST: Final = 253_402_300_799  # the end of the year 9999, where datetime ends too
_NONCE: Final = (8, 64)  # bytes (RFC 9711, 4.1)
_MOST_POLICY: Final = 1024  # characters of a policy's id


class Ear(NamedTuple):
    """What a verifier signed, once its signature, time, nonce and policy have been checked."""

    form: Form
    status: Tier  # the worst of `vector`; only AFFIRMING is without a "but"
    vector: dict[str, int]  # what is claimed, by AR4SI's names, -128 to 127
    simulated: bool  # True: of no platform's maker, proves nothing
    platform: str  # as `Claims.platform`; the name of the submodule
    result: dict[str, Any]  # as `AttestationResult.to_dict`
    issued_at: datetime
    expires_at: datetime
    nonce: bytes | None  # 8 to 64 bytes, of whoever asked for the verdict
    policy_id: str | None
    raw_evidence: bytes | None  # what was judged, where the signer put it in
    build: str  # of the verifier: name and version
    developer: str


def policy_uri(policy: "AppraisalPolicy") -> str:
    """Return the name of a policy: `ni:///sha-256;...` (RFC 6920) over its rules.

    Hashed is the TOML of `policy_file.to_toml` without comments and empty lines, in UTF-8: equal
    rules have the same name, and another rule makes another one.
    """
    rules = [line for line in to_toml(policy).split("\n") if line and not line.startswith("#")]
    return f"ni:///sha-256;{to_base64url(sha256(chr(10).join(rules).encode()))}"


def sign_ear(
    result: AttestationResult,
    key: EarKey,
    *,
    form: Form = "jwt",
    nonce: bytes | None = None,
    policy: "AppraisalPolicy | None" = None,
    policy_id: str | None = None,
    lifetime: timedelta = LIFETIME,
    now: datetime | None = None,
    raw_evidence: bytes | None = None,
) -> bytes:
    """Return the verdict, signed; the same arguments give the same bytes.

    Args:
        result: What was verified.
        key: Signs, by its one algorithm.
        form: `jwt` (application/eat+jwt, ASCII) or `cose` (application/eat+cwt).
        nonce: 8 to 64 bytes of whoever is to read it, so that they know it for fresh.
        policy: What the result was accepted by; names itself, see `policy_uri`, and makes grounds
            for the vector. That it was this one is the caller's word.
        policy_id: Another name for the policy, a URI of at most 1,024 characters.
        lifetime: Whole seconds, 1 to 86,400.
        now: When it is signed, aware; None is the time of the verification.
        raw_evidence: What was judged, to go along.

    Raises:
        UsageError: An argument is outside of what is said here, or the EAR over 262,144 bytes.
    """
    if form not in ("jwt", "cose"):  # which need not even be hashable
        raise UsageError(f"an EAR's form is jwt or cose, not {ascii(form)[:40]}")
    check_nonce(nonce)
    if raw_evidence is not None and not isinstance(raw_evidence, bytes):
        raise UsageError(f"raw evidence is bytes, not {type(raw_evidence).__name__}")
    if lifetime % _SECOND or not _SECOND <= lifetime <= _LONGEST:
        raise UsageError("the lifetime of an EAR is 1 to 86,400 whole seconds")
    if policy_id is not None:
        _check_policy_id(policy_id)
    issued = _seconds(result.verified_at if now is None else now)
    if issued + lifetime // _SECOND > _LAST:
        raise UsageError("the EAR would expire behind the year 9999")
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
    return seal(_for_json(claims) if form == "jwt" else _for_cbor(claims), key, form)


def verify_ear(
    token: bytes | str,
    key: EarPublicKey,
    *,
    nonce: bytes | None,
    now: datetime,
    policy_id: str | None = None,
    leeway: timedelta = LEEWAY,
) -> Ear:
    """Return what a verifier signed, if it holds; `status` is the caller's to look at.

    Args:
        token: An EAR in either form, at most 262,144 bytes.
        key: The verifier's, from a place that is trusted; it decides on the algorithm.
        nonce: What the EAR must have, 8 to 64 bytes; None, which must be written out, takes any
            and none: then a verdict may be somebody else's, or an older one.
        now: An aware datetime.
        policy_id: What the EAR must have; None takes any.
        leeway: By how much the EAR may be too old or too new, 0 to 300 seconds.

    Raises:
        FormatError: It is no EAR.
        SignatureError: The signature does not hold (`ear_bad_signature`), or a header is not one
            that the key's holder writes (`ear_bad_header`).
        VerificationError: It holds and is not what was asked for: `ear_profile`, `ear_expired`,
            `ear_not_yet_valid`, `ear_nonce`, `ear_policy`; or it is for some only, or from some
            time on (`aud` and `nbf` of RFC 8392, 3.1, which no EAR made here has): `ear_bad_claim`.
        UsageError: An argument is outside of what is said here.
    """
    check_nonce(nonce)
    if not timedelta(0) <= leeway <= _MOST_LEEWAY:
        raise UsageError("the leeway is 0 to 300 seconds")
    if now.utcoffset() is None:
        raise UsageError("now has no time zone")
    if isinstance(token, str):
        token = token.encode("utf-8", "replace")  # what is no ASCII is refused as such
    if not isinstance(token, bytes):
        raise UsageError(f"an EAR is bytes or text, not {type(token).__name__}")
    form, claims = open_token(token, key)
    ear = _read(form, claims if form == "jwt" else _from_cbor(claims))
    _check_time(ear, now, leeway)
    if nonce is not None and not hmac.compare_digest(ear.nonce or b"", nonce):
        told = "no nonce" if ear.nonce is None else "another nonce than was asked for"
        raise VerificationError(f"the EAR has {told}", reason="ear_nonce")
    if policy_id is not None and ear.policy_id != policy_id:
        has = ascii(ear.policy_id)[:200]
        raise VerificationError(f"the EAR is by the policy {has}", reason="ear_policy")
    return ear


def check_nonce(nonce: bytes | None) -> None:
    """Refuse a nonce that an EAT may not have.

    Raises:
        UsageError: It is no `bytes`, or not 8 to 64 of them.
    """
    if nonce is not None and not isinstance(nonce, bytes):
        raise UsageError(f"a nonce is bytes, not {type(nonce).__name__}")
    least, most = _NONCE
    if nonce is not None and not least <= len(nonce) <= most:
        raise UsageError(f"a nonce has {least} to {most} bytes, not {len(nonce)}")


def _check_policy_id(policy_id: str) -> None:
    if not isinstance(policy_id, str):
        raise UsageError(f"the id of a policy is text, not {type(policy_id).__name__}")
    if not 0 < len(policy_id) <= _MOST_POLICY:
        raise UsageError(f"the id of a policy has 1 to {_MOST_POLICY} characters")


def _appraisal(
    result: AttestationResult, policy: "AppraisalPolicy | None", policy_id: str | None
) -> dict[str, Any]:
    vector = trust(result, policy)
    found: dict[str, Any] = {
        "ear.status": Tier.worst(vector),
        "ear.trustworthiness-vector": vector,
        RESULT: result.to_dict(),
    }
    if policy_id is not None:
        found["ear.appraisal-policy-id"] = policy_id
    return found


def _for_json(claims: dict[str, Any]) -> dict[str, Any]:
    """Return claims with bytes as text, and tiers by their names."""
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
    """Return claims under their numbers."""
    found = dict(claims)
    found["ear.verifier-id"] = numbered(claims["ear.verifier-id"], VERIFIER)
    found["submods"] = {
        name: numbered(
            {
                **one,
                "ear.status": int(one["ear.status"]),
                "ear.trustworthiness-vector": numbered(one["ear.trustworthiness-vector"], VECTOR),
            },
            APPRAISAL,
        )
        for name, one in claims["submods"].items()
    }
    return numbered(found, TOP)


def _from_cbor(claims: Mapping[Any, Any]) -> dict[str, Any]:
    """Return claims under their names; tiers and bytes stay what they are."""
    found = named(claims, TOP)
    found["ear.verifier-id"] = named(_object(found, "ear.verifier-id"), VERIFIER)
    submods = _object(found, "submods")
    found["submods"] = {name: named(_object(submods, name), APPRAISAL) for name in submods}
    for one in found["submods"].values():
        vector = _object(one, "ear.trustworthiness-vector")
        one["ear.trustworthiness-vector"] = named(vector, VECTOR)
    return found


def _read(form: Form, claims: dict[str, Any]) -> Ear:
    """Return the claims, each of its type."""
    _check_profile(claims)
    submods, platform = _only_submod(claims)
    appraisal = _object(submods, platform)
    vector = _object(appraisal, "ear.trustworthiness-vector")
    for name in vector:
        _number(vector, name, -128, 127)
    result = _object(appraisal, RESULT)
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:  # COSE may hold bytes, too
        raise FormatError(f"the result in the EAR is not what JSON can hold: {error}") from error
    if result.get("platform") != platform:
        raise FormatError("the EAR's submod has another name than the platform in its result")
    verifier = _object(claims, "ear.verifier-id")
    nonce = _bytes(claims, "eat_nonce", form)
    if nonce is not None and not _NONCE[0] <= len(nonce) <= _NONCE[1]:
        raise FormatError(f"the EAR's nonce has {len(nonce)} bytes, not 8 to 64")
    simulated = result.get("simulated")
    if not isinstance(simulated, bool):
        raise FormatError("the EAR does not say whether it is about simulated evidence")
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
    """Refuse another profile, and what would narrow the claims in a way not known here."""
    if (profile := claims.get("eat_profile")) != PROFILE:
        raise VerificationError(
            f"the token's profile is not that of an EAR: {ascii(profile)[:200]}",
            reason="ear_profile",
        )
    for name in REFUSED:
        if name in claims:
            raise VerificationError(
                f"the EAR has the claim {name}, which is not known here", reason="ear_bad_claim"
            )


def _only_submod(claims: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the submods, of which there is one, and its name."""
    submods = _object(claims, "submods")
    if len(submods) != 1:
        raise FormatError(f"the EAR has {len(submods)} submods, not one")
    [platform] = submods
    if not isinstance(platform, str):
        raise FormatError("the name of the EAR's submod is no text")
    return submods, platform


def _status(
    appraisal: dict[str, Any], vector: dict[str, int], form: Form, *, simulated: bool
) -> Tier:
    """Return the overall status, which is never better than what it sums up."""
    told = appraisal.get("ear.status")
    tiers: dict[object, Tier] = {str(tier) if form == "jwt" else int(tier): tier for tier in Tier}
    if type(told) not in {int, str} or told not in tiers:
        raise FormatError("ear.status is none of the tiers")
    status, worst = tiers[told], Tier.worst(vector)
    if simulated:
        worst = Tier.CONTRAINDICATED
    if status is not worst:
        raise FormatError(f"ear.status is {status}, and what it sums up is {worst}")
    return status


def _check_time(ear: Ear, now: datetime, leeway: timedelta) -> None:
    lifetime = ear.expires_at - ear.issued_at
    if not _SECOND <= lifetime <= _LONGEST:
        raise FormatError("the EAR expires before it was issued, or over a day later")
    if ear.issued_at - now > leeway:
        raise VerificationError(
            f"the EAR is of {ear.issued_at.isoformat()}, after {now.isoformat()}",
            reason="ear_not_yet_valid",
        )
    if now - ear.expires_at >= leeway:
        raise VerificationError(
            f"the EAR has expired at {ear.expires_at.isoformat()}, before {now.isoformat()}",
            reason="ear_expired",
        )


def _seconds(moment: datetime) -> int:
    if moment.utcoffset() is None:
        raise UsageError("now has no time zone")
    seconds = (moment - _EPOCH) // _SECOND
    if seconds < 0:
        raise UsageError("now is before the year 1970")
    return seconds


def _object(fields: Mapping[Any, Any], name: str) -> dict[Any, Any]:
    value = fields.get(name)
    if not isinstance(value, dict):
        raise FormatError(f"{_shown(name)} of the EAR is missing, or no map")
    return value


def _text(fields: Mapping[Any, Any], name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or len(value) > _MOST_POLICY:
        raise FormatError(f"{_shown(name)} of the EAR is missing, no text or too long")
    return value


def _number(fields: Mapping[Any, Any], name: str, least: int, most: int) -> int:
    value = fields.get(name)
    if type(value) is not int or not least <= value <= most:
        raise FormatError(f"{_shown(name)} of the EAR is no number from {least} to {most}")
    return value


def _moment(fields: Mapping[Any, Any], name: str) -> datetime:
    return _EPOCH + timedelta(seconds=_number(fields, name, 0, _LAST))


def _bytes(fields: Mapping[Any, Any], name: str, form: Form) -> bytes | None:
    value = fields.get(name)
    if value is None:
        return None
    if form == "jwt" and isinstance(value, str):
        return from_base64url(value, f"{name} of the EAR")
    if form == "jwt" or not isinstance(value, bytes):
        raise FormatError(f"{name} of the EAR is of the wrong type")
    return value


def _shown(name: object) -> str:
    return ascii(name)[:40]
