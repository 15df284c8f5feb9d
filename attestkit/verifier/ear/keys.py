"""Keys of signed verdicts: Ed25519 with EdDSA, P-256 with ES256; each signs by its one algorithm.

A public key goes round as a JWK (RFC 7517; RFC 8037 for Ed25519). Its name, the `kid`, is its
thumbprint: that of RFC 7638 in a JWT, that of RFC 9679 in COSE.
"""

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from typing import Any, Final, Literal, NamedTuple

from attestkit._crypto.ecdsa import P256Key, p256_verify
from attestkit._crypto.ed25519 import Ed25519Key, ed25519_verify
from attestkit._crypto.hashes import sha256
from attestkit._crypto.zeroize import Secret
from attestkit._formats import strict_json
from attestkit.errors import FormatError, SignatureError, UsageError

__all__ = ["EarKey", "EarPublicKey", "from_base64url", "to_base64url"]

Algorithm = Literal["EdDSA", "ES256"]

_LARGEST: Final = 65_536  # bytes of a key or a key set
_MOST_KEYS: Final = 32  # in a set
_KINDS: Final = (("OKP", "Ed25519"), ("EC", "P-256"))  # kty and crv; may meet what has no hash
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})  # RFC 7518, 6.2.2 to 6.4


class EarPublicKey(NamedTuple):
    """The public half: who has it can check what the other half signed, by one algorithm alone."""

    algorithm: Algorithm
    key: bytes  # EdDSA: 32 bytes (RFC 8032); ES256: x and y, 64 bytes

    @classmethod
    def from_jwk(cls, jwk: Mapping[str, Any]) -> "EarPublicKey":
        """Read a JWK: kty OKP with crv Ed25519, or kty EC with crv P-256.

        Raises:
            FormatError: It is of another kind, holds a private key, or is for something else than
                signatures by the key's algorithm.
        """
        kind = (jwk.get("kty"), jwk.get("crv"))
        if kind == ("OKP", "Ed25519"):
            found = cls("EdDSA", _coordinate(jwk, "x"))
        elif kind == ("EC", "P-256"):
            found = cls("ES256", _coordinate(jwk, "x") + _coordinate(jwk, "y"))
        else:
            raise FormatError("a key of an EAR is Ed25519 (kty OKP) or P-256 (kty EC)")
        if "d" in jwk:
            raise FormatError("the JWK holds a private key, which nobody is to hand out")
        if jwk.get("alg", found.algorithm) != found.algorithm or jwk.get("use", "sig") != "sig":
            raise FormatError(f"the JWK is not for signatures by {found.algorithm}")
        return found

    @classmethod
    def from_jwks(cls, text: str | bytes) -> tuple["EarPublicKey", ...]:
        """Read a key set, as the verifier service's `/verify/keys` has it (RFC 7517, 5).

        Keys whose `kty` and `crv` no EAR is signed with are left out, as that section has it.

        Raises:
            FormatError: It is no such JSON, over 65,536 bytes, has over 32 keys or none to check an
                EAR with, a private or secret key of whatever kind, or one of an EAR's kinds that
                `from_jwk` refuses.
            UsageError: It is neither text nor `bytes`.
        """
        if not isinstance(text, (str, bytes)):
            raise UsageError(f"a key set is text or bytes, not {type(text).__name__}")
        if len(text) > _LARGEST:
            raise FormatError(f"a key set has at most {_LARGEST} bytes")
        keys = strict_json.read_object(text, "the key set").get("keys")
        if not isinstance(keys, list) or not 0 < len(keys) <= _MOST_KEYS:
            raise FormatError(f"keys of a key set is an array of 1 to {_MOST_KEYS} JWKs")
        if not all(isinstance(key, dict) for key in keys):
            raise FormatError("a key of the key set is no JSON object")
        if any(not _PRIVATE.isdisjoint(key) for key in keys):
            raise FormatError("the key set holds a private key, which nobody is to hand out")
        found = [cls.from_jwk(key) for key in keys if (key.get("kty"), key.get("crv")) in _KINDS]
        if not found:
            raise FormatError("the key set has no Ed25519 (kty OKP) or P-256 (kty EC) key")
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
        import cbor2  # late: only who speaks COSE pays for it

        if self.algorithm == "EdDSA":
            members = {1: 1, -1: 6, -2: self.key}
        else:
            members = {1: 2, -1: 1, -2: self.key[:32], -3: self.key[32:]}
        return sha256(cbor2.dumps(members, canonical=True))

    def check(self, signature: bytes, data: bytes) -> None:
        """Check a 64-byte signature over `data`.

        Raises:
            SignatureError: It does not hold, or it or the key is malformed; the reason is
                `ear_bad_signature`.
        """
        try:
            if self.algorithm == "ES256":
                p256_verify(self.key, signature, data)
                return
            if ed25519_verify(self.key, signature, data):
                return
            problem = "Ed25519: the signature does not hold"
        except (SignatureError, UsageError) as error:
            problem = str(error)
        raise SignatureError(f"the EAR's signature: {problem}", reason="ear_bad_signature")

    def _jwk_members(self) -> dict[str, str]:
        if self.algorithm == "EdDSA":
            return {"crv": "Ed25519", "kty": "OKP", "x": to_base64url(self.key)}
        x, y = to_base64url(self.key[:32]), to_base64url(self.key[32:])
        return {"crv": "P-256", "kty": "EC", "x": x, "y": y}


class EarKey(Secret):
    """The private half. ES256 takes its nonces from RFC 6979, so both algorithms repeat."""

    __slots__ = ("_signer", "public")

    def __init__(self, signer: Ed25519Key | P256Key) -> None:
        """Take a key; `from_bytes` makes one from what a file holds."""
        self._signer = signer
        self.public: EarPublicKey = (
            EarPublicKey("ES256", signer.public_point)
            if isinstance(signer, P256Key)
            else EarPublicKey("EdDSA", signer.public_key)
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> "EarKey":
        """Read a private key: PEM of Ed25519 or P-256, not encrypted, or an Ed25519 seed.

        Args:
            data: PKCS#8 (P-256: or SEC1) in PEM, at most 65,536 bytes; or exactly 32 raw bytes.

        Raises:
            FormatError: It is something else; the text shows nothing of it.
        """
        if len(data) == 32:
            return cls(Ed25519Key(data))
        if len(data) > _LARGEST:
            raise FormatError(f"a private key has at most {_LARGEST} bytes")
        text = data.decode("ascii", "replace")
        return cls(Ed25519Key.from_pem(text) or P256Key.from_pem(text))

    def sign(self, data: bytes) -> bytes:
        """Return the signature over `data`, 64 bytes (RFC 8032, or r and s: RFC 7518, 3.4)."""
        return self._signer.sign(data)

    def __repr__(self) -> str:
        return f"EarKey({self.public!r})"


def to_base64url(data: bytes) -> str:
    """Return base64url without padding (RFC 7515, 2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def from_base64url(text: str, what: str) -> bytes:
    """Return the bytes of base64url without padding, if it is the one way to write them.

    Raises:
        FormatError: It is something else; `what` names it.
    """
    problem = f"{what} is not base64url without padding"
    if not text.isascii():
        raise FormatError(problem)
    try:
        # The decoder skips what is no base64 and stray bits at the end; compared, nothing is lost.
        found = urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except ValueError as error:
        raise FormatError(problem) from error
    if to_base64url(found) != text:
        raise FormatError(problem)
    return found


def _coordinate(jwk: Mapping[str, Any], name: str) -> bytes:
    value = jwk.get(name)
    if not isinstance(value, str):
        raise FormatError(f"{name} of the JWK is not text")
    found = from_base64url(value, f"{name} of the JWK")
    if len(found) != 32:
        raise FormatError(f"{name} of the JWK has {len(found)} bytes, not 32")
    return found
