"""Where an application's keys come from, and the way that has the root at hand."""

from typing import Final, NamedTuple, NoReturn, Protocol

from attestkit._crypto.ecdsa import P256Key, k256_public_key
from attestkit._crypto.zeroize import wipe
from attestkit.errors import UsageError
from attestkit.keys.app_keys import AppKeys
from attestkit.keys.hkdf import separated_path, utf8
from attestkit.keys.signatures import PREHASHED, signed_message

__all__ = ["DerivedKey", "KeyDeriver", "LocalKeys", "Signature", "public_half"]

# The names of GetKey; signing wants one to be named, and knows one more.
_ALGORITHMS: Final = {
    "": "secp256k1",
    "secp256k1": "secp256k1",
    "k256": "secp256k1",
    "ed25519": "ed25519",
}


class DerivedKey(NamedTuple):
    """A derived key pair and who vouches for it."""

    key: bytes
    """32 bytes: scalar of secp256k1 or P-256 (big-endian), Ed25519 seed, or X25519 secret."""
    public_key: bytes
    """33 bytes of secp256k1, 65 of P-256 (both SEC1), 32 of Ed25519 and of X25519."""
    signature_chain: tuple[bytes, ...]
    """The root key's signature over it, then the KMS's over the root key; 65 bytes or none."""

    def __repr__(self) -> str:
        return f"DerivedKey(public_key={self.public_key.hex()})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse, so that a secret does not get into a file or a queue by accident."""
        raise UsageError("a DerivedKey holds a secret and does not pickle")


class Signature(NamedTuple):
    """A signature by the application's signing key, and who vouches for that key."""

    signature: bytes
    """64 bytes."""
    signature_chain: tuple[bytes, ...]
    """The signature again, then the chain of the signing key."""
    public_key: bytes
    """33 bytes of compressed secp256k1, or 32 of Ed25519."""


class KeyDeriver(Protocol):
    """Where an application's keys come from: its root (`LocalKeys`), or an agent that has it."""

    def derive(self, path: str, purpose: str = "", algorithm: str = "secp256k1") -> DerivedKey:
        """Return the key of `path`, the same bytes for all algorithms; `purpose` is only signed."""
        ...

    def derive_separated(self, path: str, algorithm: str) -> DerivedKey:
        """Return the key of `path` and `algorithm`, which shares its bytes with no other."""
        ...

    def sign(self, data: bytes, algorithm: str) -> Signature:
        """Return a signature over `data` by the application's signing key."""
        ...


class LocalKeys:
    """Derives keys from `AppKeys` in this process. Closing those closes this."""

    def __init__(self, app_keys: AppKeys) -> None:
        self._app_keys = app_keys

    def derive(self, path: str, purpose: str = "", algorithm: str = "secp256k1") -> DerivedKey:
        """Return the key that GetKey of the dstack guest agent API gives.

        Args:
            path: any text, also empty; another path is another key.
            purpose: text that the chain's first signature covers; it does not change the key.
            algorithm: secp256k1 (also k256 or the empty name) or ed25519. Both get the same 32
                bytes: use `derive_separated` unless a key of an agent is to be met.

        Raises:
            UsageError: another algorithm, or the AppKeys are closed.
        """
        kind = _ALGORITHMS.get(algorithm)
        if kind is None:
            raise UsageError("Unsupported algorithm")
        key = self._app_keys.derive(utf8("path", path))
        public = public_half(kind, key)
        return DerivedKey(key, public, self._app_keys.endorse(public, purpose))

    def derive_separated(self, path: str, algorithm: str) -> DerivedKey:
        """Return the key of `path` for one algorithm alone; `separated_path` says how.

        Args:
            path: any text, also empty.
            algorithm: secp256k1 (or k256), ed25519, p256 or x25519. The agent's API vouches for
                the first two; the chain of p256 and x25519 is empty.

        Raises:
            UsageError: another algorithm, or the AppKeys are closed.
        """
        separated = separated_path(path, algorithm)
        if algorithm in _ALGORITHMS:
            return self.derive(separated, "", algorithm)
        if algorithm == "p256":
            pair = self.derive_p256(separated)
            return DerivedKey(pair.scalar, b"\x04" + pair.public_point, ())
        key = self._app_keys.derive(utf8("path", separated))
        return DerivedKey(key, public_half("x25519", key), ())

    def derive_p256(self, path: str) -> P256Key:
        """Return the P-256 key of `path`, as the older DeriveKey does; UsageError when closed."""
        scalar = self._app_keys.derive(utf8("path", path))
        try:
            return P256Key.from_scalar(scalar)
        finally:
            wipe(scalar)

    def sign(self, data: bytes, algorithm: str) -> Signature:
        """Sign with the application's signing key, the key of path `vms` and purpose `signing`.

        Args:
            data: what to sign; for secp256k1_prehashed the 32-byte digest.
            algorithm: ed25519, secp256k1 (or k256; over the SHA-256 of the data), or
                secp256k1_prehashed.

        Returns:
            The signature (64 bytes; deterministic, low s), its chain of three, the public key.

        Raises:
            UsageError: `data` is not `bytes`, another algorithm, a digest of another size, or the
                AppKeys are closed.
        """
        if not isinstance(data, bytes):
            raise UsageError("what is signed is bytes")
        kind, message = signed_message(algorithm, data)
        if algorithm == PREHASHED and len(data) != 32:
            raise UsageError(
                f"Pre-hashed signing requires a 32-byte digest, but received {len(data)} bytes"
            )
        key, chain = self._app_keys.signer(kind)
        signature = key.sign(message)
        return Signature(signature, (signature, *chain), key.public_key)

    def __repr__(self) -> str:
        return f"LocalKeys({self._app_keys!r})"


def public_half(algorithm: str, key: bytes) -> bytes:
    """Return the public key of a derived key of secp256k1, ed25519 or x25519.

    Raises:
        UsageError: `key` is no key of that algorithm.
    """
    if algorithm not in {"ed25519", "x25519"}:
        return k256_public_key(key)
    # Late: it loads a library that most have no use for.
    from attestkit._crypto.ed25519 import ed25519_public_key, x25519_public_key

    return x25519_public_key(key) if algorithm == "x25519" else ed25519_public_key(key)
