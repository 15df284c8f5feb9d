"""Tokens of NVIDIA's attestation service and the keys that sign them.

The keys are a JWK set (RFC 7517), which only TLS authenticates when it is fetched. Its certificates
are issued by a CA that is not public, so they are only compared with the keys.
"""

import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any, Final

from attestkit._argument_checks import require_size, wrong_type
from attestkit._crypto.p384 import P384_SPKI_HEAD, P384PublicKey
from attestkit._crypto.x509.app_certificates import Certificate, read_certificate
from attestkit._formats import strict_json
from attestkit._formats.compact_jws import from_base64url
from attestkit._formats.strict_json import from_hex
from attestkit._outcomes.reasons import FormatReason
from attestkit._outcomes.steps import GpuReason
from attestkit._sanitize import shown
from attestkit.errors import FormatError, GpuEvidenceError, SignatureError
from attestkit.gpu.nras.claims import DeviceClaims, read_claims
from attestkit.gpu.nras.detached_eat import (
    DetachedEat,
    check_digests,
    read_detached_eat,
    read_token,
)

MAX_JWKS: Final = 256 << 10
"""Maximum size of a key set in bytes."""
MAX_KEYS: Final = 128
"""Maximum number of keys in a set; NVIDIA's has up to 36."""
MAX_KEY_ID: Final = 256
"""Maximum length of the identifier of a key in characters."""
_MAX_CERTIFICATES: Final = 8  # of a key
_KIND: Final = ("EC", "P-384")
_COORDINATE: Final = 48  # bytes
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518, 6.2.2 to 6.4
_KEYS_SUBJECT: Final = "NRAS keys"
NRAS_ISSUER: Final = "https://nras.attestation.nvidia.com"
"""Issuer (`iss`) of the tokens of NVIDIA's attestation service."""
CLOCK_SKEW: Final = timedelta(minutes=1)
"""Allowed difference between the service's clock and that of the verifier."""
_SUBJECT: Final = "NRAS"
_OVERALL: Final = "overall token"
_NONCE_SIZE: Final = 32
_VERSIONS: Final = ("2.0", "3.0", "4.0")  # of overall tokens


def read_jwks(data: bytes | str) -> Mapping[str, P384PublicKey]:
    """Return the P-384 keys of a JWK set (JSON) by their identifiers (`kid`).

    Keys of other types are ignored (RFC 7517, section 5).

    Raises:
        FormatError: If the set is malformed or over 256 KiB, has no P-384 key or over 128 keys, two
            with one identifier, a private key, a key that is not for ES384 signatures or not on the
            curve, or a first certificate (`x5c`) that is not of its key.
        UsageError: If `data` is neither `bytes` nor `str`.
    """
    if not isinstance(data, (bytes, str)):
        raise wrong_type(_KEYS_SUBJECT, "bytes or str", data)
    if len(data) > MAX_JWKS:
        raise _bad_keys(f"over {MAX_JWKS} bytes", "too_large")
    found: dict[str, P384PublicKey] = {}
    for at, jwk in enumerate(_read_set(data)):
        if (jwk.get("kty"), jwk.get("crv")) != _KIND:
            continue
        key_id, key = _read_jwk(jwk, f"{_KEYS_SUBJECT}: key {at}")
        if key_id in found:
            raise _bad_keys(f"key {at}: kid must be unique: {shown(key_id)}", "duplicate")
        found[key_id] = key
    if not found:
        raise _bad_keys("must contain a P-384 key", "missing")
    return found


def _read_set(data: bytes | str) -> list[dict[str, Any]]:
    """Return the keys of a JWK set in JSON, each a JWK; FormatError if one is private."""
    keys = strict_json.read_object(data, _KEYS_SUBJECT).get("keys")
    if not isinstance(keys, list):
        reason: FormatReason = "missing" if keys is None else "wrong_type"
        raise _bad_keys("member 'keys' must be an array", reason)
    if len(keys) > MAX_KEYS:
        raise _bad_keys(f"{len(keys)} keys, at most {MAX_KEYS}", "too_many")
    for at, jwk in enumerate(keys):
        if not isinstance(jwk, dict):
            raise _bad_keys(f"key {at}: must be a JSON object", "wrong_type")
        if not _PRIVATE.isdisjoint(jwk):
            raise _bad_keys(f"key {at}: must not be a private key", "unknown_field")
    return keys


def _read_jwk(jwk: Mapping[str, Any], what: str) -> tuple[str, P384PublicKey]:
    """Return identifier (`kid`) and key of a JWK; `what` names the JWK in errors."""
    key_id = strict_json.string(jwk, "kid", what=what)
    if not 0 < len(key_id) <= MAX_KEY_ID or not key_id.isprintable():
        message = f"{what}: kid: must be 1 to {MAX_KEY_ID} printable characters"
        raise FormatError(message, reason="wrong_value")
    if jwk.get("alg", "ES384") != "ES384" or jwk.get("use", "sig") != "sig":
        message = f"{what}: alg and use must allow ES384 signatures"
        raise FormatError(message, reason="inconsistent")
    spki = P384_SPKI_HEAD + _coordinate(jwk, "x", what) + _coordinate(jwk, "y", what)
    try:
        key = P384PublicKey(spki)
    except SignatureError as error:
        raise FormatError(f"{what}: must be on the curve P-384", reason="wrong_value") from error
    if "x5c" in jwk:
        _check_certificates(jwk["x5c"], spki, what)
    return key_id, key


def _check_certificates(value: object, spki: bytes, what: str) -> None:
    """Check that the first certificate of `x5c` is that of the key (RFC 7517, 4.7).

    `value` is the member `x5c`, `spki` the key in DER; `what` names the JWK in errors.
    """
    what = f"{what}: x5c"
    if not isinstance(value, list):
        raise strict_json.wrong_json_type(what, "an array", value)
    if not 0 < len(value) <= _MAX_CERTIFICATES:
        message = f"{what}: {len(value)} certificates, must be 1 to {_MAX_CERTIFICATES}"
        raise FormatError(message, reason="wrong_size")
    certificates = [_certificate(each, f"{what}[{at}]") for at, each in enumerate(value)]
    if not hmac.compare_digest(certificates[0].spki_der, spki):
        message = f"{what}: the first certificate must be of this key"
        raise FormatError(message, reason="inconsistent")


def _certificate(value: object, what: str) -> Certificate:
    """Return the certificate in `value`, base64 of DER; `what` names it in errors."""
    der = strict_json.from_base64(value, what)
    try:
        return read_certificate(der)
    except FormatError as error:
        raise FormatError(f"{what}: {error.message}", reason=error.reason) from error


def _coordinate(jwk: Mapping[str, Any], name: str, what: str) -> bytes:
    value = from_base64url(strict_json.string(jwk, name, what=what), f"{what}: {name}")
    if len(value) != _COORDINATE:
        message = f"{what}: {name}: {len(value)} bytes, must be {_COORDINATE}"
        raise FormatError(message, reason="wrong_size")
    return value


def _bad_keys(problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"{_KEYS_SUBJECT}: {problem}", reason=reason)


@dataclass(frozen=True, slots=True)
class NrasResult:
    """Verified answer of NVIDIA's service, which accepted all devices.

    Attributes:
        devices: Claims about each device, in the order of the answer.
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
        answer: The detached EAT bundle: JSON, or parsed.
        jwks: The service's keys, a JWK set (JSON) that was fetched over TLS.
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
    """Verifies signature, issuer and times of each token that it is given."""

    def __init__(
        self, keys: Mapping[str, P384PublicKey], issuer: str, now: datetime, skew: timedelta
    ) -> None:
        self._keys = keys
        self._issuer = issuer
        self._now = now
        self._skew = skew

    def verify(self, token: bytes, name: str, device: int | None) -> tuple[dict[str, Any], str]:
        """Verify a token; return its claims, and the identifier (`kid`) of its key.

        `name` and the index `device` (None for the overall token) are for errors.
        """
        jws = read_token(token, name)
        key_id = _check_header(jws.header, name, device)
        key = self._keys.get(key_id)
        if key is None:
            problem = f"no key with the kid {shown(key_id)}; fetch the keys together with tokens"
            raise _refused(name, problem, "nras_key", device)
        try:
            key.verify(jws.signature, jws.signed)
        except SignatureError as error:
            raise _refused(name, "invalid signature", "nras_signature", device) from error
        claims = jws.read_payload()
        if claims.get("iss") != self._issuer:
            raise _refused(name, f"the issuer must be {self._issuer}", "nras_key", device)
        self._check_times(claims, name, device)
        return claims, key_id

    def _check_times(self, claims: Mapping[str, Any], name: str, device: int | None) -> None:
        issued, begins, expires = (_time(claims, each, name) for each in ("iat", "nbf", "exp"))
        start = max(issued, begins)
        if start - self._now > self._skew:
            raise _refused(name, f"not valid before {start:%Y-%m-%d %H:%M:%S}", "nras_time", device)
        if self._now - expires >= self._skew or expires <= issued:
            problem = f"expired at {expires:%Y-%m-%d %H:%M:%S}, or expires before it was issued"
            raise _refused(name, f"{problem}; request new tokens", "nras_time", device)


def _check_header(header: Mapping[str, Any], name: str, device: int | None) -> str:
    """Check the header of a token; return the identifier (`kid`) of its key.

    `name` and the index `device` (None for the overall token) are for errors.
    """
    algorithm, key_id = header.get("alg"), header.get("kid")
    if algorithm != "ES384":
        stated = shown(algorithm) if isinstance(algorithm, str) else "missing"
        raise _refused(name, f"alg must be ES384: {stated}", "nras_signature", device)
    if not header.keys() <= {"alg", "kid", "typ"} or header.get("typ", "JWT") != "JWT":
        problem = "the header must have only alg, kid and typ, which must be JWT"
        raise _refused(name, problem, "nras_signature", device)
    if not isinstance(key_id, str):
        raise _refused(name, "the header must name its key (kid)", "nras_key", device)
    return key_id


def _check_nonce(claims: Mapping[str, Any], nonce: bytes, name: str, device: int | None) -> None:
    found = from_hex(claims.get("eat_nonce"), f"{name}: eat_nonce", _NONCE_SIZE)
    if not hmac.compare_digest(found, nonce):
        raise _refused(name, f"nonce must be {nonce.hex()}: {found.hex()}", "nras_nonce", device)


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
        message = f"{_OVERALL}: x-nvidia-ver must be 2.0, 3.0 or 4.0; update attestkit"
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
