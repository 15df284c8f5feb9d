"""Verification of tokens of NVIDIA's attestation service (nvidia-gpu.md, section 5.2)."""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from attestkit._argument_checks import require_size
from attestkit._crypto.p384 import P384PublicKey
from attestkit._formats.strict_json import from_hex
from attestkit._sanitize import shown
from attestkit._verification_steps import GpuReason
from attestkit.errors import FormatError, GpuEvidenceError, SignatureError
from attestkit.gpu.nras.claims import DeviceClaims, read_claims
from attestkit.gpu.nras.detached_eat import (
    DetachedEat,
    check_digests,
    read_detached_eat,
    read_token,
)
from attestkit.gpu.nras.jwks import read_jwks

NRAS_ISSUER: Final = "https://nras.attestation.nvidia.com"
"""Issuer of NVIDIA's tokens."""

CLOCK_SKEW: Final = timedelta(minutes=1)
"""Allowed difference of the service's clock."""

_SUBJECT: Final = "NRAS"
_OVERALL: Final = "overall token"
_NONCE_SIZE: Final = 32
_VERSIONS: Final = frozenset({"2.0", "3.0", "4.0"})  # of overall tokens


@dataclass(frozen=True, slots=True)
class NrasResult:
    """Claims of the service that were verified; the service accepted all devices.

    Attributes:
        devices: In the order of the answer.
        version: Version of the overall token, such as 3.0.
        issued_at: The latest time at which a token was issued, aware.
        expires_at: The first time at which a token expires, aware.
        key_id: Identifier of the key that signed the overall token.
        claims: Claims of the overall token.
    """

    devices: tuple[DeviceClaims, ...]
    version: str
    issued_at: datetime
    expires_at: datetime
    key_id: str
    claims: Mapping[str, Any] = field(repr=False)


def verify_tokens(
    answer: bytes | str | DetachedEat,
    jwks: bytes | str,
    nonce: bytes,
    now: datetime,
    *,
    issuer: str = NRAS_ISSUER,
    allow_hold: bool = False,
    skew: timedelta = CLOCK_SKEW,
) -> NrasResult:
    """Verify an answer of the service: signatures, issuer, times, nonces, hashes and result.

    Args:
        answer: The detached EAT bundle.
        jwks: The service's keys, which were fetched over TLS.
        nonce: The nonce of the request, 32 bytes.
        now: Time of the verification, aware.
        issuer: Required issuer of all tokens.
        allow_hold: Whether certificates of RIMs may be on hold.
        skew: Allowed difference of the service's clock.

    Raises:
        FormatError: If bundle, keys, a token or a claim is malformed.
        GpuEvidenceError: If a check fails: `nras_key`, `nras_signature`, `nras_time`, `nras_nonce`,
            `nras_digest` or `nras_result`.
        UsageError: If the nonce does not have 32 bytes.
    """
    require_size("nonce", nonce, _NONCE_SIZE)
    eat = answer if isinstance(answer, DetachedEat) else read_detached_eat(answer)
    verifier = _TokenVerifier(read_jwks(jwks), issuer, now, skew)
    overall, key_id = verifier.verify(eat.overall, _OVERALL, None)
    payloads = [
        verifier.verify(token, name, at)[0] for at, (name, token) in enumerate(eat.devices.items())
    ]
    _check_nonce(overall, nonce, _OVERALL, None)
    check_digests(overall, eat.devices)
    devices = [
        read_claims(claims, name) for name, claims in zip(eat.devices, payloads, strict=True)
    ]
    _check_result(overall, devices, allow_hold=allow_hold)
    for at, (device, claims) in enumerate(zip(devices, payloads, strict=True)):
        _check_nonce(claims, nonce, device.name, at)
    tokens = (overall, *payloads)
    return NrasResult(
        tuple(devices),
        _version(overall),
        max(_time(claims, "iat", _OVERALL) for claims in tokens),
        min(_time(claims, "exp", _OVERALL) for claims in tokens),
        key_id,
        overall,
    )


class _TokenVerifier:
    """Verifies signature, issuer and times of one token after the other."""

    def __init__(
        self, keys: Mapping[str, P384PublicKey], issuer: str, now: datetime, skew: timedelta
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._now = now
        self._skew = skew

    def verify(self, token: bytes, name: str, device: int | None) -> tuple[dict[str, Any], str]:
        """Return the claims of a token, and the identifier of its key."""
        jws = read_token(token, name)
        key_id = _check_header(jws.header, name, device)
        key = self._keys.get(key_id)
        if key is None:
            problem = f"no key with the kid {shown(key_id)}; use the keys of the token's time"
            raise _refused(name, problem, "nras_key", device)
        try:
            key.verify(jws.signature, jws.signed)
        except SignatureError as error:
            raise _refused(name, "invalid signature", "nras_signature", device) from error
        claims = jws.read_payload()
        if claims.get("iss") != self._issuer:
            raise _refused(name, "another issuer", "nras_key", device)
        self._check_times(claims, name, device)
        return claims, key_id

    def _check_times(self, claims: Mapping[str, Any], name: str, device: int | None) -> None:
        issued, begins, expires = (_time(claims, each, name) for each in ("iat", "nbf", "exp"))
        start = max(issued, begins)
        if start - self._now > self._skew:
            raise _refused(name, f"not valid before {start:%Y-%m-%d %H:%M:%S}", "nras_time", device)
        if self._now - expires >= self._skew or expires <= issued:
            raise _refused(name, f"expired at {expires:%Y-%m-%d %H:%M:%S}", "nras_time", device)


def _check_header(header: Mapping[str, Any], name: str, device: int | None) -> str:
    """Check the header of a token; return the identifier of its key."""
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm != "ES384":
        stated = shown(algorithm) if isinstance(algorithm, str) else "missing"
        raise _refused(name, f"alg must be ES384: {stated}", "nras_signature", device)
    if not header.keys() <= {"alg", "kid", "typ"} or header.get("typ", "JWT") != "JWT":
        problem = "the header may have alg, kid, and JWT as typ only"
        raise _refused(name, problem, "nras_signature", device)
    if not isinstance(key_id, str):
        raise _refused(name, "kid missing", "nras_key", device)
    return key_id


def _check_nonce(claims: Mapping[str, Any], nonce: bytes, name: str, device: int | None) -> None:
    found = from_hex(claims.get("eat_nonce"), f"{name}: eat_nonce", _NONCE_SIZE)
    if not hmac.compare_digest(found, nonce):
        raise _refused(name, "another nonce", "nras_nonce", device)


def _check_result(
    overall: Mapping[str, Any], devices: list[DeviceClaims], *, allow_hold: bool
) -> None:
    result = overall.get("x-nvidia-overall-att-result")
    if not isinstance(result, bool):
        message = f"{_OVERALL}: x-nvidia-overall-att-result: must be true or false"
        raise FormatError(message, reason="missing" if result is None else "wrong_type")
    found = {
        at: f"{device.name}: {', '.join(problems)}"
        for at, device in enumerate(devices)
        if (problems := device.problems(allow_hold=allow_hold))
    }
    if not result or found:
        listed = "; ".join([*found.values()][:8]) or "no reason stated"
        if len(found) > 8:
            listed += f"; and {len(found) - 8} more devices"
        message = f"{_SUBJECT}: the service did not accept the evidence: {listed[:800]}"
        raise GpuEvidenceError(message, reason="nras_result", device=min(found, default=None))


def _version(claims: Mapping[str, Any]) -> str:
    version = claims.get("x-nvidia-ver")
    if version not in _VERSIONS:
        message = f"{_OVERALL}: x-nvidia-ver: must be 2.0, 3.0 or 4.0; update attestkit"
        raise FormatError(message, reason="unsupported_version")
    return str(version)


def _time(claims: Mapping[str, Any], name: str, token: str) -> datetime:
    value = claims.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 37:
        message = f"{token}: {name}: must be seconds since 1970"
        raise FormatError(message, reason="missing" if value is None else "wrong_value")
    return datetime.fromtimestamp(value, timezone.utc)


def _refused(name: str, problem: str, reason: GpuReason, device: int | None) -> GpuEvidenceError:
    return GpuEvidenceError(f"{_SUBJECT}: {name}: {problem}", reason=reason, device=device)
