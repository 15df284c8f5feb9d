"""Content of an EAR: its signed claims as an `Ear`, after checks of types and consistency."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Annotated, Any, Final, NamedTuple, get_args

import msgspec

from attestkit._formats import strict_json
from attestkit._formats.compact_jws import from_base64url
from attestkit._sanitize import one_line
from attestkit.errors import FormatError, UsageError, VerificationError
from attestkit.report_data import check_nonce
from attestkit.verifier.ear.signed_token import TokenFormat
from attestkit.verifier.ear.token_claims import (
    APPRAISAL,
    REFUSED,
    RESULT,
    TOP,
    VECTOR,
    VERIFIER,
    EarSubmodule,
    Tier,
    claims_by_name,
    read_gpu_submodules,
)
from attestkit.verifier.result import BoundTo

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import FormatReason

PROFILE: Final = "tag:github.com,2023:veraison/ear"
"""The `eat_profile` of an EAR."""

LONGEST_POLICY_ID: Final = 1024  # characters
LAST_SECOND: Final = 253_402_300_799  # since 1970: end of the year 9999, the limit of datetime
EPOCH: Final = datetime(1970, 1, 1, tzinfo=timezone.utc)
_LONGEST_PROBLEM: Final = 200  # characters of a problem, which may contain untrusted text


class Ear(NamedTuple):
    """Content of an EAR (EAT Attestation Result); `verify_ear` returns it after all checks."""

    form: TokenFormat
    # Worst tier of `vector` and `gpus`, or a worse one: see `result_token.verify_ear`.
    status: Tier
    vector: dict[str, int]  # trustworthiness claims by AR4SI name, -128 to 127
    simulated: bool  # whether the root is not the platform vendor's
    platform: str  # as `Claims.platform`; the name of the submodule
    result: dict[str, Any]  # as `AttestationResult.to_dict`
    issued_at: datetime
    expires_at: datetime
    nonce: bytes | None  # 8 to 64 bytes, to which the evidence is bound
    bound_to: BoundTo | None  # as `AttestationResult.bound_to`
    report_data: bytes  # as `Claims.report_data`
    policy_id: str | None
    raw_evidence: bytes | None  # verified evidence, if included
    build: str  # of the verifier: name and version
    developer: str
    gpus: dict[str, EarSubmodule]  # by name, such as nvidia-gpu-0; empty without GPUs


_Text = Annotated[str, msgspec.Meta(max_length=LONGEST_POLICY_ID)]
_Seconds = Annotated[int, msgspec.Meta(ge=0, le=LAST_SECOND)]
_Claim = Annotated[int, msgspec.Meta(ge=-128, le=127)]


class _VerifierId(msgspec.Struct):
    build: _Text
    developer: _Text


class _Appraisal(msgspec.Struct):
    status: object = msgspec.field(name="ear.status")
    vector: dict[str, _Claim] = msgspec.field(name="ear.trustworthiness-vector")
    result: dict[str, Any] = msgspec.field(name=RESULT)
    policy_id: _Text | None = msgspec.field(name="ear.appraisal-policy-id", default=None)


class _TokenClaims(msgspec.Struct):
    """Claims of an EAR, before the byte strings of a JWT are decoded."""

    iat: _Seconds
    exp: _Seconds
    verifier_id: _VerifierId = msgspec.field(name="ear.verifier-id")
    submods: Annotated[dict[str, dict[str, Any]], msgspec.Meta(min_length=1, max_length=65)]
    eat_nonce: object = None
    raw_evidence: object = msgspec.field(name="ear.raw-evidence", default=None)


def _check_result(result: dict[str, Any], platform: str) -> bool:
    """Return whether the evidence is simulated, as the claim `attestkit.result` says.

    Args:
        result: The claim, which must be representable in JSON.
        platform: Name of the submodule, which the claim must have as its platform.

    Raises:
        FormatError: If the claim is malformed, or names a different platform.
    """
    try:
        json.dumps(result, allow_nan=False)
    except (TypeError, ValueError) as error:  # bytes in COSE
        message = f"EAR: {RESULT}: must have values of JSON only, no byte strings or NaN"
        raise FormatError(message, reason="wrong_type") from error
    if result.get("platform") != platform:
        message = f"EAR: platform of {RESULT} must be the name of the submodule"
        raise FormatError(message, reason="inconsistent")
    simulated = result.get("simulated")
    if not isinstance(simulated, bool):
        raise FormatError(f"EAR: {RESULT} must have a boolean 'simulated'", reason="missing")
    return simulated


def read_claims(form: TokenFormat, signed: dict[Any, Any]) -> Ear:
    """Return the content of an EAR, after a check of all types.

    Args:
        form: Encoding of the EAR.
        signed: Its claims, whose signature has been verified.

    Raises:
        FormatError: If a claim is missing or malformed, or two claims contradict each other.
        VerificationError: If the profile is not `PROFILE` (`ear_profile`), or a claim is not
            supported (`ear_bad_claim`).
    """
    fields = signed if form == "jwt" else _from_cbor(signed)
    _check_profile(fields)
    try:
        claims = msgspec.convert(fields, _TokenClaims)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    platform, appraisal, others = _split_submodules(claims.submods)
    result = appraisal.result
    simulated = _check_result(result, platform)
    bound_to, nonce, report_data = _read_binding(form, claims.eat_nonce, result)
    fresh = nonce is not None
    gpus = read_gpu_submodules(others, result, as_text=form == "jwt", fresh=fresh)
    status = _status(appraisal, form, simulated=simulated, fresh=fresh)
    return Ear(
        form=form,
        status=max([status, *(gpu.status for gpu in gpus.values())]),
        vector=appraisal.vector,
        simulated=simulated,
        platform=platform,
        result=result,
        issued_at=EPOCH + timedelta(seconds=claims.iat),
        expires_at=EPOCH + timedelta(seconds=claims.exp),
        nonce=nonce,
        bound_to=bound_to,
        report_data=report_data,
        policy_id=appraisal.policy_id,
        raw_evidence=_bytes("ear.raw-evidence", claims.raw_evidence, form),
        build=claims.verifier_id.build,
        developer=claims.verifier_id.developer,
        gpus=gpus,
    )


def _split_submodules(
    submods: dict[str, dict[str, Any]],
) -> tuple[str, _Appraisal, dict[str, dict[str, Any]]]:
    """Return name and appraisal of the platform's submodule, and the other submodules by name.

    The platform's is the submodule with a result (`attestkit.result`).
    """
    names = [name for name, claims in submods.items() if RESULT in claims]
    name = names[0] if len(names) == 1 else next(iter(submods))
    try:
        appraisal = msgspec.convert(submods[name], _Appraisal)
    except msgspec.ValidationError as error:
        raise _invalid(str(error)) from error
    return name, appraisal, {other: one for other, one in submods.items() if other != name}


def _from_cbor(claims: Mapping[Any, Any]) -> dict[str, Any]:
    """Replace the CBOR labels of claims, also nested ones, by names; types are not checked."""
    found = claims_by_name(claims, TOP)
    _rename(found, "ear.verifier-id", VERIFIER)
    if isinstance(submods := found.get("submods"), dict):
        for name in submods:
            _rename(submods, name, APPRAISAL)
            if isinstance(submods[name], dict):
                _rename(submods[name], "ear.trustworthiness-vector", VECTOR)
    return found


def _rename(claims: dict[Any, Any], name: object, labels: Mapping[str, int]) -> None:
    """Replace the CBOR labels in the claim `name` by names, if that claim is a map."""
    if isinstance(value := claims.get(name), dict):
        claims[name] = claims_by_name(value, labels)


def _read_binding(
    form: TokenFormat, value: object, result: dict[str, Any]
) -> tuple[BoundTo | None, bytes | None, bytes]:
    """Return `bound_to`, nonce and report data of an EAR.

    Args:
        form: Encoding of the EAR.
        value: Claim `eat_nonce`, or None.
        result: Claim `attestkit.result`; it must be bound to the nonce, if there is one.

    Raises:
        FormatError: If a value is malformed, or nonce and result contradict each other.
    """
    nonce = _bytes("eat_nonce", value, form)
    if nonce is not None:
        try:
            check_nonce(nonce)
        except UsageError as error:
            raise FormatError(f"EAR: eat_{error}", reason="wrong_size") from error
    bound_to = result.get("bound_to")
    if bound_to not in (None, *get_args(BoundTo)):  # a tuple: it may not be hashable
        text = f"EAR: bound_to of {RESULT}: unknown: {ascii(bound_to)[:_LONGEST_PROBLEM]}"
        raise FormatError(text, reason="wrong_value")
    has_nonce = nonce is not None
    if has_nonce is not (bound_to == "nonce") or has_nonce is not result.get("fresh"):
        text = f"EAR: eat_nonce contradicts bound_to or fresh of {RESULT}"
        raise FormatError(text, reason="inconsistent")
    report_data = strict_json.from_hex(result.get("report_data"), f"EAR: report_data of {RESULT}")
    return bound_to, nonce, report_data


def _invalid(problem: str) -> FormatError:
    """Return the FormatError for `problem`, an error message of msgspec."""
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
        message = f"EAR: eat_profile: must be {PROFILE}, not {ascii(profile)[:200]}"
        raise VerificationError(message, reason="ear_profile")
    for name in REFUSED:
        if name in claims:
            message = f"EAR: unsupported claim: {name}; request an EAR without it"
            raise VerificationError(message, reason="ear_bad_claim")


def _status(appraisal: _Appraisal, form: TokenFormat, *, simulated: bool, fresh: bool) -> Tier:
    """Return the status in an appraisal, after comparing it with the other claims.

    Args:
        appraisal: The platform's submodule.
        form: Encoding of the EAR: a status is text in a JWT, a number in COSE.
        simulated: Whether the evidence is simulated.
        fresh: Whether the EAR has a nonce.

    Raises:
        FormatError: If the status is not valid, or not that of the other claims.
    """
    value = appraisal.status
    tiers: dict[object, Tier] = {str(tier) if form == "jwt" else int(tier): tier for tier in Tier}
    if type(value) not in {int, str} or value not in tiers:
        text = f"must be {', '.join(map(str, tiers))}, not {ascii(value)[:_LONGEST_PROBLEM]}"
        raise FormatError(f"EAR: submods: ear.status: {text}", reason="wrong_value")
    status = tiers[value]
    expected = Tier.overall(appraisal.vector, simulated=simulated, fresh=fresh)
    if status is not expected:
        message = f"EAR: ear.status is {status}, but must be {expected} for its claims"
        raise FormatError(message, reason="inconsistent")
    return status


def _bytes(name: str, value: object, form: TokenFormat) -> bytes | None:
    if value is None:
        return None
    if form == "jwt" and isinstance(value, str):
        return from_base64url(value, f"EAR: {name}")
    if form == "jwt" or not isinstance(value, bytes):
        kind = "base64url text" if form == "jwt" else "a byte string"
        raise FormatError(f"EAR: {name}: must be {kind}", reason="wrong_type")
    return value
