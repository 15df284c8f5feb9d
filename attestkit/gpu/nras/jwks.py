"""Keys of NVIDIA's attestation service: a JWK set (RFC 7517; nvidia-gpu.md, section 5.2).

The set is authentic only because it came over TLS. Its certificates lead to a CA that is not
public, so they are only compared with the keys.
"""

import hmac
from collections.abc import Mapping
from typing import Any, Final

from attestkit._crypto.p384 import P384_SPKI_HEAD, P384PublicKey
from attestkit._crypto.x509.app_certificates import read_certificate
from attestkit._formats import strict_json
from attestkit._formats.compact_jws import from_base64url
from attestkit._reasons import FormatReason
from attestkit.errors import FormatError, SignatureError, UsageError

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
_SUBJECT: Final = "NRAS keys"


def read_jwks(data: bytes | str) -> Mapping[str, P384PublicKey]:
    """Return the P-384 keys of a set by their identifiers (`kid`).

    Keys of other types are ignored (RFC 7517, section 5).

    Raises:
        FormatError: If the set is malformed or over 256 KiB, has no P-384 key or over 128 keys, two
            with one identifier, a private key, a key that is not for ES384 signatures or not on the
            curve, or a certificate (`x5c`) of another key.
        UsageError: If `data` is neither `bytes` nor `str`.
    """
    if not isinstance(data, (bytes, str)):
        raise UsageError(f"{_SUBJECT}: must be bytes or str", reason="wrong_type")
    if len(data) > MAX_JWKS:
        raise _bad(f"over {MAX_JWKS} bytes", "too_large")
    found: dict[str, P384PublicKey] = {}
    for at, jwk in enumerate(_read_set(data)):
        if (jwk.get("kty"), jwk.get("crv")) != _KIND:
            continue
        key_id, key = _read_jwk(jwk, f"{_SUBJECT}: key {at}")
        if key_id in found:
            raise _bad(f"key {at}: its kid occurs twice", "duplicate")
        found[key_id] = key
    if not found:
        raise _bad("contains no P-384 key", "missing")
    return found


def _read_set(data: bytes | str) -> list[dict[str, Any]]:
    """Return the keys of a set, none of which is private."""
    keys = strict_json.read_object(data, _SUBJECT).get("keys")
    if not isinstance(keys, list):
        reason: FormatReason = "missing" if keys is None else "wrong_type"
        raise _bad("member 'keys' missing or not an array", reason)
    if len(keys) > MAX_KEYS:
        raise _bad(f"{len(keys)} keys, at most {MAX_KEYS}", "too_many")
    for at, jwk in enumerate(keys):
        if not isinstance(jwk, dict):
            raise _bad(f"key {at}: must be a JSON object", "wrong_type")
        if not _PRIVATE.isdisjoint(jwk):
            raise _bad(f"key {at}: contains a private key", "unknown_field")
    return keys


def _read_jwk(jwk: Mapping[str, Any], what: str) -> tuple[str, P384PublicKey]:
    """Return identifier and key of a JWK."""
    key_id = _text(jwk, "kid", what)
    if not 0 < len(key_id) <= MAX_KEY_ID or not key_id.isprintable():
        message = f"{what}: kid: must be 1 to {MAX_KEY_ID} printable characters"
        raise FormatError(message, reason="wrong_value")
    if jwk.get("alg", "ES384") != "ES384" or jwk.get("use", "sig") != "sig":
        message = f"{what}: alg or use do not allow ES384 signatures"
        raise FormatError(message, reason="inconsistent")
    spki = P384_SPKI_HEAD + _coordinate(jwk, "x", what) + _coordinate(jwk, "y", what)
    try:
        key = P384PublicKey(spki)
    except SignatureError as error:
        raise FormatError(f"{what}: not on the curve P-384", reason="wrong_value") from error
    if "x5c" in jwk:
        _check_certificates(jwk["x5c"], spki, what)
    return key_id, key


def _check_certificates(value: object, spki: bytes, what: str) -> None:
    """Check that the first certificate of `x5c` is that of the key (RFC 7517, 4.7)."""
    what = f"{what}: x5c"
    if not isinstance(value, list):
        raise FormatError(f"{what}: must be an array", reason="wrong_type")
    if not 0 < len(value) <= _MAX_CERTIFICATES:
        message = f"{what}: {len(value)} certificates, must be 1 to {_MAX_CERTIFICATES}"
        raise FormatError(message, reason="wrong_size")
    try:
        certificates = [read_certificate(strict_json.from_base64(each, what)) for each in value]
    except FormatError as error:
        message = f"{what}: {error.message}"
        raise FormatError(message, reason=error.reason) from error
    if not hmac.compare_digest(certificates[0].spki_der, spki):
        message = f"{what}: the first certificate is of another key"
        raise FormatError(message, reason="inconsistent")


def _coordinate(jwk: Mapping[str, Any], name: str, what: str) -> bytes:
    value = from_base64url(_text(jwk, name, what), f"{what}: {name}")
    if len(value) != _COORDINATE:
        message = f"{what}: {name}: {len(value)} bytes, must be {_COORDINATE}"
        raise FormatError(message, reason="wrong_size")
    return value


def _text(jwk: Mapping[str, Any], name: str, what: str) -> str:
    try:
        return strict_json.string(jwk, name)
    except FormatError as error:
        raise FormatError(f"{what}: {error.message}", reason=error.reason) from error


def _bad(problem: str, reason: FormatReason) -> FormatError:
    return FormatError(f"{_SUBJECT}: {problem}", reason=reason)
