"""Keys of EARs: Ed25519 for EdDSA, P-256 for ES256.

Public keys are published as JWKs (RFC 7517; RFC 8037 for Ed25519). The `kid` is the key's
thumbprint: of RFC 7638 in a JWT, of RFC 9679 in COSE.
"""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from attestkit._argument_checks import wrong_type
from attestkit._crypto.ecdsa import P256Key, p256_verify
from attestkit._crypto.ed25519 import Ed25519Key, ed25519_verify
from attestkit._crypto.hashes import sha256
from attestkit._crypto.zeroize import Secret
from attestkit._formats import strict_json
from attestkit._formats.compact_jws import from_base64url, to_base64url
from attestkit.errors import FormatError, SignatureError, UsageError

if TYPE_CHECKING:
    from attestkit._reasons import FormatReason

Algorithm = Literal["EdDSA", "ES256"]

_LARGEST: Final = 65_536  # bytes of a key or a key set
_MOST_KEYS: Final = 32  # in a set
# kty and crv; a tuple, not a set: JWK values may not be hashable.
_KINDS: Final = (("OKP", "Ed25519"), ("EC", "P-256"))
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518, 6.2.2 to 6.4


class EarPublicKey(NamedTuple):
    """Public key of a verifier, for one algorithm."""

    algorithm: Algorithm
    key: bytes  # EdDSA: 32 bytes (RFC 8032); ES256: x and y, 64 bytes

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> "EarPublicKey":
        """Decode a JWK: kty OKP with crv Ed25519, or kty EC with crv P-256.

        Raises:
            FormatError: If the JWK has another type, contains a private key, or its alg or use do
                not allow signatures of the key's algorithm.
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
                "JWK: contains a private key; publish the public key only", reason="unknown_field"
            )
        if jwk.get("alg", found.algorithm) != found.algorithm or jwk.get("use", "sig") != "sig":
            message = f"JWK: alg or use do not allow {found.algorithm} signatures"
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
            raise FormatError(f"key set: over {_LARGEST} bytes", reason="too_large")
        keys = strict_json.read_object(text, "key set").get("keys")
        if not isinstance(keys, list):
            reason: FormatReason = "missing" if keys is None else "wrong_type"
            raise FormatError("key set: member 'keys' missing or not an array", reason=reason)
        if not 0 < len(keys) <= _MOST_KEYS:
            message = f"key set: {len(keys)} keys, must be 1 to {_MOST_KEYS}"
            raise FormatError(message, reason="wrong_size")
        if not all(isinstance(key, dict) for key in keys):
            raise FormatError("key set: a key is not a JSON object", reason="wrong_type")
        if any(not _PRIVATE.isdisjoint(key) for key in keys):
            raise FormatError(
                "key set: contains a private key; publish public keys only", reason="unknown_field"
            )
        found = [cls.from_jwk(key) for key in keys if (key.get("kty"), key.get("crv")) in _KINDS]
        if not found:
            raise FormatError("key set: contains no Ed25519 or P-256 key", reason="unsupported")
        return tuple(found)

    def to_jwk(self) -> dict[str, str]:
        """Return the JWK, with `alg`, `kid` and `use`."""
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
        """Wrap a key; see `from_bytes` for the content of a file."""
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
            raise FormatError(f"private key: over {_LARGEST} bytes", reason="too_large")
        text = data.decode("ascii", "replace")
        return cls(Ed25519Key.from_pem(text) or P256Key.from_pem(text))

    def sign(self, data: bytes) -> bytes:
        """Return the 64-byte signature over `data` (RFC 8032; for P-256 r and s, RFC 7518, 3.4)."""
        return self._signer.sign(data)

    def __repr__(self) -> str:
        return f"EarKey({self.public!r})"


def _coordinate(jwk: Mapping[str, Any], name: str) -> bytes:
    value = jwk.get(name)
    if not isinstance(value, str):
        reason: FormatReason = "missing" if value is None else "wrong_type"
        raise FormatError(f"JWK: {name} is missing or not a string", reason=reason)
    found = from_base64url(value, f"JWK: {name}")
    if len(found) != 32:
        raise FormatError(f"JWK: {name}: {len(found)} bytes, must be 32", reason="wrong_size")
    return found
