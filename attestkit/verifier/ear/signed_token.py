"""Signed tokens of an EAR (compact JWS and COSE_Sign1), and their keys: Ed25519 and P-256.

Public keys are published as JWKs (RFC 7517; RFC 8037 for Ed25519). The `kid` is the key's
thumbprint: of RFC 7638 in a JWT, of RFC 9679 in COSE.

Decoding avoids known weaknesses of signed formats (RFC 7515, RFC 9052). The key determines the
algorithm, and the header must name it. Only alg, kid and typ are accepted as header parameters: no
`crit`, no keys or key URLs, and no unprotected parameters in COSE. Only the canonical encoding is
accepted, so that tokens are not malleable.
"""

import hmac
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, cast

from attestkit._argument_checks import wrong_type
from attestkit._crypto.ecdsa import P256Key, p256_verify
from attestkit._crypto.ed25519 import Ed25519Key, ed25519_verify
from attestkit._crypto.hashes import sha256
from attestkit._crypto.zeroize import Secret
from attestkit._formats import strict_json
from attestkit._formats.cbor import Value, read_value
from attestkit._formats.compact_jws import from_base64url, read_compact_jws, to_base64url
from attestkit.errors import FormatError, SignatureError, UsageError

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import FormatReason

Algorithm = Literal["EdDSA", "ES256"]
_LARGEST: Final = 65_536  # bytes of a key or a key set
_MOST_KEYS: Final = 32  # in a set
# kty and crv; a tuple, not a set: JWK values may not be hashable.
_KINDS: Final = (("OKP", "Ed25519"), ("EC", "P-256"))
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518, 6.2.2 to 6.4
TokenFormat = Literal["jwt", "cose"]
MAX_TOKEN: Final = 262_144
"""Maximum size of a token in bytes."""
_TAG: Final = 0xD2  # of COSE_Sign1, 18 (RFC 9052, 2)
_ALG, _KID, _TYP = 1, 4, 16  # RFC 9052, 3.1; RFC 9596, 2
_COSE_ALGORITHMS: Final = {"EdDSA": -8, "ES256": -7}  # RFC 9053, 2
_COSE_TYPE: Final = "application/eat+cwt"  # RFC 9782
_JWT_TYPE: Final = "eat+jwt"


class EarPublicKey(NamedTuple):
    """Public key of a verifier, for one algorithm."""

    algorithm: Algorithm
    key: bytes  # EdDSA: 32 bytes (RFC 8032); ES256: x and y, 64 bytes

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> "EarPublicKey":
        """Decode a JWK: kty OKP with crv Ed25519, or kty EC with crv P-256.

        Raises:
            FormatError: If the JWK has an unsupported type, a missing or malformed coordinate, or a
                private key, or its alg or use does not allow signatures of the key's algorithm.
        """
        kind = (jwk.get("kty"), jwk.get("crv"))
        if kind == ("OKP", "Ed25519"):
            found = cls("EdDSA", _coordinate(jwk, "x"))
        elif kind == ("EC", "P-256"):
            found = cls("ES256", _coordinate(jwk, "x") + _coordinate(jwk, "y"))
        else:
            message = "JWK: key type must be Ed25519 (kty OKP) or P-256 (kty EC)"
            raise FormatError(message, reason="unsupported")
        if "d" in jwk:
            raise FormatError(
                "JWK: has a private key; remove it, and replace the key if the JWK was public",
                reason="unknown_field",
            )
        if jwk.get("alg", found.algorithm) != found.algorithm or jwk.get("use", "sig") != "sig":
            message = f"JWK: alg and use must allow {found.algorithm} signatures"
            raise FormatError(message, reason="inconsistent")
        return found

    @classmethod
    def from_jwks(cls, text: str | bytes) -> tuple["EarPublicKey", ...]:
        """Decode a key set (RFC 7517, 5), as `/verify/keys` of the verifier service returns it.

        Keys with an unsupported `kty` and `crv` are ignored (RFC 7517, 5).

        Raises:
            FormatError: If the key set is malformed, over 65,536 bytes, has over 32 keys, no
                supported key, a private or secret key of any type, or a supported key that
                `from_jwk` rejects.
            UsageError: If `text` is neither `str` nor `bytes`.
        """
        if not isinstance(text, (str, bytes)):
            raise wrong_type("key set", "str or bytes", text)
        if len(text) > _LARGEST:
            raise FormatError(f"key set: {len(text)} bytes, at most {_LARGEST}", reason="too_large")
        keys = strict_json.read_object(text, "key set").get("keys")
        if not isinstance(keys, list):
            reason: FormatReason = "missing" if keys is None else "wrong_type"
            raise FormatError("key set: member 'keys' must be an array", reason=reason)
        if not 0 < len(keys) <= _MOST_KEYS:
            message = f"key set: must have 1 to {_MOST_KEYS} keys, not {len(keys)}"
            raise FormatError(message, reason="wrong_size")
        if not all(isinstance(key, dict) for key in keys):
            raise FormatError("key set: each key must be a JSON object", reason="wrong_type")
        if any(not _PRIVATE.isdisjoint(key) for key in keys):
            raise FormatError(
                "key set: has a private key; remove it, and replace the key if the set was public",
                reason="unknown_field",
            )
        found = [cls.from_jwk(key) for key in keys if (key.get("kty"), key.get("crv")) in _KINDS]
        if not found:
            raise FormatError("key set: needs an Ed25519 or P-256 key", reason="unsupported")
        return tuple(found)

    def to_jwk(self) -> dict[str, str]:
        """Return the key as a JWK, with `alg`, `kid` and `use`."""
        return {
            **self._jwk_members(),
            "alg": self.algorithm,
            "kid": to_base64url(self.thumbprint),
            "use": "sig",
        }

    @property
    def thumbprint(self) -> bytes:
        """SHA-256 of the JWK's required members, 32 bytes (RFC 7638, 3)."""
        text = json.dumps(self._jwk_members(), separators=(",", ":"), sort_keys=True)
        return sha256(text.encode("ascii"))

    @property
    def cose_thumbprint(self) -> bytes:
        """SHA-256 of the COSE_Key's required parameters, 32 bytes (RFC 9679, 4)."""
        import cbor2  # lazy: only for COSE

        if self.algorithm == "EdDSA":
            members = {1: 1, -1: 6, -2: self.key}
        else:
            members = {1: 2, -1: 1, -2: self.key[:32], -3: self.key[32:]}
        return sha256(cbor2.dumps(members, canonical=True))

    def check(self, signature: bytes, data: bytes) -> None:
        """Verify a 64-byte signature over `data`.

        Raises:
            SignatureError: If the signature is not valid, or signature or key is malformed
                (`ear_bad_signature`).
        """
        try:
            if self.algorithm == "ES256":
                p256_verify(self.key, signature, data)
                return
            if ed25519_verify(self.key, signature, data):
                return
            problem = "Ed25519: invalid signature"
        except (SignatureError, UsageError) as error:
            problem = str(error)
        raise SignatureError(f"EAR: {problem}", reason="ear_bad_signature")

    def _jwk_members(self) -> dict[str, str]:
        if self.algorithm == "EdDSA":
            return {"crv": "Ed25519", "kty": "OKP", "x": to_base64url(self.key)}
        x, y = to_base64url(self.key[:32]), to_base64url(self.key[32:])
        return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


class EarKey(Secret):
    """Private key of a verifier; signatures are deterministic (ES256: RFC 6979)."""

    __slots__ = ("_signer", "public")

    def __init__(self, signer: Ed25519Key | P256Key) -> None:
        """Create it from a key object; `from_bytes` decodes the content of a file."""
        self._signer = signer
        self.public: EarPublicKey = (
            EarPublicKey("ES256", signer.public_point)
            if isinstance(signer, P256Key)
            else EarPublicKey("EdDSA", signer.public_key)
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "EarKey":
        """Decode a private key: unencrypted PEM of Ed25519 or P-256, or an Ed25519 seed.

        Args:
            data: PEM of PKCS#8 (a P-256 key may also be SEC1), at most 65,536 bytes; or exactly 32
                raw bytes, an Ed25519 seed.

        Raises:
            FormatError: If `data` is not such a key; the message contains no part of `data`.
        """
        if len(data) == 32:
            return cls(Ed25519Key(data))
        if len(data) > _LARGEST:
            raise FormatError(
                f"private key: {len(data)} bytes, at most {_LARGEST}", reason="too_large"
            )
        text = data.decode("ascii", "replace")
        return cls(Ed25519Key.from_pem(text) or P256Key.from_pem(text))

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature over `data` (RFC 8032; for P-256 r and s, RFC 7518, 3.4)."""
        return self._signer.sign(data)

    def __repr__(self) -> str:
        return f"EarKey({self.public!r})"


def _coordinate(jwk: Mapping[str, Any], name: str) -> bytes:
    found = from_base64url(strict_json.string(jwk, name, what="JWK"), f"JWK: {name}")
    if len(found) != 32:
        raise FormatError(f"JWK: {name}: must be 32 bytes, not {len(found)}", reason="wrong_size")
    return found


class VerifiedToken(NamedTuple):
    """Claims of a token whose signature is valid; keys are text (jwt) or CBOR labels (cose)."""

    form: TokenFormat
    claims: dict[Any, Any]


def sign_token(claims: dict[Any, Any], key: EarKey, form: TokenFormat) -> bytes:
    """Return a token with signed claims: JSON in a `jwt`, deterministic CBOR in `cose`.

    Raises:
        UsageError: If the token is over 262,144 bytes, or a claim has an unpaired surrogate.
    """
    try:
        token = _sign_jwt(claims, key) if form == "jwt" else _sign_cose(claims, key)
    except UnicodeEncodeError as error:
        raise UsageError("EAR: a claim has an unpaired surrogate", reason="encoding") from error
    if len(token) > MAX_TOKEN:
        raise UsageError(f"EAR: {len(token)} bytes, at most {MAX_TOKEN}", reason="too_large")
    return token


def verify_token(token: bytes, key: EarPublicKey) -> VerifiedToken:
    """Verify the signature of a token, and return its claims.

    Raises:
        FormatError: If the token is malformed, or over 262,144 bytes.
        SignatureError: If the signature is not valid, or the header has an algorithm or key id that
            is not that of `key`, or an unsupported parameter.
    """
    if len(token) > MAX_TOKEN:
        raise FormatError(f"EAR: {len(token)} bytes, at most {MAX_TOKEN}", reason="too_large")
    if token.startswith(bytes([_TAG])):
        return VerifiedToken("cose", _verify_cose(token, key))
    return VerifiedToken("jwt", _verify_jwt(token, key))


def _sign_jwt(claims: dict[Any, Any], key: EarKey) -> bytes:
    kid = to_base64url(key.public.thumbprint)
    header = {"alg": key.public.algorithm, "kid": kid, "typ": _JWT_TYPE}
    parts = [to_base64url(_json(part)) for part in (header, claims)]
    signed = ".".join(parts).encode("ascii")
    return signed + b"." + to_base64url(key.sign(signed)).encode("ascii")


def _json(value: object) -> bytes:
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    return text.encode()


def _verify_jwt(token: bytes, key: EarPublicKey) -> dict[Any, Any]:
    token_parts = read_compact_jws(token, MAX_TOKEN, "EAR")
    expected = {"alg": key.algorithm, "kid": to_base64url(key.thumbprint), "typ": _JWT_TYPE}
    _check_headers(token_parts.header, expected, needed="alg")
    key.check(token_parts.signature, token_parts.signed)
    return token_parts.read_payload()


def _sign_cose(claims: dict[Any, Any], key: EarKey) -> bytes:
    import cbor2  # lazy: only for COSE

    public = key.public
    algorithm = _COSE_ALGORITHMS[public.algorithm]
    header = {_ALG: algorithm, _KID: public.cose_thumbprint, _TYP: _COSE_TYPE}
    protected, payload = [cbor2.dumps(part, canonical=True) for part in (header, claims)]
    signature = key.sign(_signed_region(protected, payload))
    return _envelope(protected, payload, signature)


def _verify_cose(token: bytes, key: EarPublicKey) -> dict[Any, Any]:
    envelope = read_value(token, tag=18)
    if not isinstance(envelope, list) or len(envelope) != 4:
        raise FormatError("EAR: must be a COSE_Sign1 array of 4 items", reason="wrong_type")
    protected, unprotected, payload, signature = envelope
    if payload is None:
        raise FormatError("EAR: payload must not be detached", reason="missing")
    if not (
        isinstance(protected, bytes)
        and isinstance(payload, bytes)
        and isinstance(signature, bytes)
        and isinstance(unprotected, dict)
    ):
        raise FormatError("EAR: items of COSE_Sign1 have wrong types", reason="wrong_type")
    if unprotected:
        raise _header("unprotected header parameters are not allowed")
    if not hmac.compare_digest(_envelope(protected, payload, signature), token):
        message = "EAR: COSE_Sign1 must be in deterministic encoding"
        raise FormatError(message, reason="not_canonical")
    algorithm = _COSE_ALGORITHMS[key.algorithm]
    expected = {_ALG: algorithm, _KID: key.cose_thumbprint, _TYP: _COSE_TYPE}
    _check_headers(_map(read_value(protected), "header"), expected, needed=_ALG)
    key.check(signature, _signed_region(protected, payload))
    return _map(read_value(payload), "payload")


def _map(value: Value, what: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"EAR: {what} must be a map", reason="wrong_type")
    return cast("dict[Any, Any]", value)


def _envelope(protected: bytes, payload: bytes, signature: bytes) -> bytes:
    import cbor2

    return bytes([_TAG]) + cbor2.dumps([protected, {}, payload, signature])


def _signed_region(protected: bytes, payload: bytes) -> bytes:
    """Return the bytes that a COSE signature covers: the Sig_structure (RFC 9052, 4.4) in CBOR.

    Args:
        protected: The protected header as encoded in the token.
        payload: The payload.
    """
    import cbor2

    return cbor2.dumps(["Signature1", protected, b"", payload])


def _check_headers(header: dict[Any, Any], expected: dict[Any, Any], needed: object) -> None:
    """Check that a signed header has only expected parameters, with their values.

    Args:
        header: Header parameters by name or label.
        expected: Allowed parameters: algorithm, key id and token type of the key and form.
        needed: Name or label of the algorithm, the one parameter that must not be missing.
    """
    if needed not in header:
        raise _header("header must name the algorithm")
    for name, value in header.items():
        if name not in expected:
            raise _header(f"unsupported header parameter: {ascii(name)[:40]}")
        if not _same(value, expected[name]):
            raise _header(f"header parameter {name!r}: must be {_shown(expected[name])}")


def _same(value: object, expected: object) -> bool:
    """Return whether `value` and `expected` and their types are equal: True and 1 differ."""
    if isinstance(value, bytes) and isinstance(expected, bytes):
        return hmac.compare_digest(value, expected)
    return type(value) is type(expected) and value == expected


def _shown(value: object) -> str:
    return value.hex() if isinstance(value, bytes) else repr(value)


def _header(problem: str) -> SignatureError:
    return SignatureError(f"EAR: {problem}", reason="ear_bad_header")
