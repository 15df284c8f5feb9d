"""Key derivation and signing with the root key of an application."""

from typing import Final, NamedTuple, NoReturn, Protocol

from attestkit._argument_checks import require_bytes, unsupported_algorithm
from attestkit._crypto.ecdsa import P256Key, k256_public_key
from attestkit._crypto.zeroize import wipe
from attestkit.errors import UsageError
from attestkit.keys.app_keys import AppKeys
from attestkit.keys.hkdf import encode_purpose, separated_path, utf8
from attestkit.keys.key_claims import PREHASHED, prepare_message

ALGORITHMS: Final = {
    "": "secp256k1",
    "secp256k1": "secp256k1",
    "k256": "secp256k1",
    "ed25519": "ed25519",
}
"""Key types of GetKey by the names that agents of every version know."""


class DerivedKey(NamedTuple):
    """A derived key pair and the signatures that certify it."""

    key: bytes
    """32 bytes: secp256k1 or P-256 scalar (big-endian), Ed25519 seed, or X25519 secret."""
    public_key: bytes
    """secp256k1: 33 bytes, P-256: 65 bytes (both SEC1), Ed25519 and X25519: 32 bytes."""
    signature_chain: tuple[bytes, ...]
    """Two signatures of 65 bytes: by the root key over this key, then by the KMS over the root key.
    Without a KMS the second is empty. P-256 and X25519 keys of `derive` have no signatures."""

    def __repr__(self) -> str:
        return f"DerivedKey(public_key={self.public_key.hex()})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        """Refuse to pickle, so that the secret does not leak into a file or queue."""
        message = "DerivedKey: contains a secret and cannot be pickled"
        raise UsageError(message, reason="not_picklable")


class Signature(NamedTuple):
    """A signature by the application's signing key, and the signatures that certify that key."""

    signature: bytes
    """64 bytes: of Ed25519, or r and s of secp256k1."""
    signature_chain: tuple[bytes, ...]
    """The signature itself, then the signature chain of the signing key."""
    public_key: bytes
    """Compressed secp256k1 (33 bytes) or Ed25519 (32 bytes)."""


class KeyDeriver(Protocol):
    """Source of an application's keys: its root key (`LocalKeys`) or an agent (`AgentKeys`)."""

    def derive(self, path: str, algorithm: str) -> DerivedKey:
        """Return the key of `path` (its name) for one algorithm.

        `algorithm` is secp256k1 (or k256), ed25519, p256 or x25519; they do not share key material.
        """
        ...

    def derive_compat(
        self, path: str, purpose: str = "", algorithm: str = "secp256k1"
    ) -> DerivedKey:
        """Return the key that GetKey returns: all algorithms of a path share the same 32 bytes.

        `path` is the name of the key. The first signature of its chain covers `purpose`, which does
        not change the key. `algorithm` is secp256k1 (or k256) or ed25519.
        """
        ...

    def derive_v1(self, domain: str, algorithm: str) -> DerivedKey:
        """Return the key that GetKey of the agent's API v1 returns for domain and algorithm.

        `domain` is the name of the key, and `algorithm` secp256k1 or ed25519.
        """
        ...

    def sign(self, data: bytes, algorithm: str) -> Signature:
        """Sign `data` with the application's signing key.

        `algorithm` is ed25519, secp256k1 (or k256), or secp256k1_prehashed, for which `data` is a
        digest of 32 bytes.
        """
        ...


class LocalKeys:
    """Keys derived from `AppKeys` in this process, until the AppKeys are closed."""

    def __init__(self, app_keys: AppKeys) -> None:
        self._app_keys = app_keys

    def derive(self, path: str, algorithm: str) -> DerivedKey:
        """Return the key of `path` for one algorithm; algorithms do not share key material.

        It is derived from the path with the algorithm as a prefix, see `separated_path`.

        Args:
            path: Name of the key: any text, may be empty.
            algorithm: secp256k1 (or k256), ed25519, p256 or x25519. The signature chain of p256 and
                x25519 keys is empty, because the agent's API does not sign them.

        Raises:
            UsageError: If the algorithm is unknown, the path has unpaired surrogates, the AppKeys
                are closed, or the derived bytes are not a P-256 scalar (probability about 2**-32).
        """
        separated = separated_path(path, algorithm)
        if algorithm in ALGORITHMS:
            return self.derive_compat(separated, "", algorithm)
        if algorithm == "p256":
            pair = self.derive_p256(separated)
            return DerivedKey(pair.scalar, b"\x04" + pair.public_point, ())
        key = self._app_keys.derive_bytes(separated.encode())
        return DerivedKey(key, compute_public_key("x25519", key), ())

    def derive_compat(
        self, path: str, purpose: str = "", algorithm: str = "secp256k1"
    ) -> DerivedKey:
        """Return the key that GetKey of the dstack guest agent API returns.

        The secp256k1 and the Ed25519 key of a path share the same 32 bytes, as in dstack: a flaw in
        the use of one key reveals the other. Use `derive` unless the key must equal that of an
        agent. For a path that begins with `attestkit/v1/`, the result may equal a key of `derive`.

        Args:
            path: Name of the key: any text, may be empty.
            purpose: Text without control characters that the first signature of the chain covers;
                it does not change the key.
            algorithm: secp256k1 (also k256 or the empty name) or ed25519.

        Raises:
            UsageError: If the algorithm is unknown, a text has unpaired surrogates, the
                purpose has control characters, or the AppKeys are closed.
        """
        key_type = ALGORITHMS.get(algorithm)
        if key_type is None:
            raise unsupported_algorithm(algorithm, filter(None, ALGORITHMS))
        encode_purpose(purpose)  # before a secret exists
        key = self._app_keys.derive_bytes(utf8("path", path))
        public = compute_public_key(key_type, key)
        return DerivedKey(key, public, self._app_keys.endorse(public, purpose))

    def derive_v1(self, domain: str, algorithm: str) -> DerivedKey:
        """Return the key that GetKey of `dstack.guest.v1` (dstack 0.6) returns.

        Neither `derive` nor `derive_compat` returns the same key for the same name. The signature
        chain binds domain and algorithm; see `verify_key_chain`.

        Args:
            domain: Name of the key: any text, may be empty. Domains that differ in one byte of
                UTF-8 have unrelated keys, also `a` and `a/b`.
            algorithm: secp256k1 or ed25519, without default or alias.

        Raises:
            UsageError: If the algorithm is missing or unknown, the domain has unpaired surrogates,
                the AppKeys are closed, or the derived bytes are not a secp256k1 scalar
                (probability below 2**-127).
        """
        key = self._app_keys.derive_v1_bytes(domain, algorithm)
        try:
            public = compute_public_key(algorithm, key)
        except UsageError as error:
            wipe(key)
            text = "derived secp256k1 key is not a valid scalar; use a different domain"
            raise UsageError(text, reason="invalid_key") from error
        return DerivedKey(key, public, self._app_keys.endorse_v1(public, domain, algorithm))

    def derive_p256(self, path: str) -> P256Key:
        """Return the P-256 key of `path` (its name), as the older method DeriveKey does.

        Raises:
            UsageError: If the path has unpaired surrogates, the AppKeys are closed, or the derived
                bytes are not a P-256 scalar (probability about 2**-32).
        """
        scalar = self._app_keys.derive_bytes(utf8("path", path))
        try:
            return P256Key.from_scalar(scalar)
        finally:
            wipe(scalar)

    def sign(self, data: bytes, algorithm: str) -> Signature:
        """Sign with the application's signing key, the key of path `vms` and purpose `signing`.

        Args:
            data: Message, or for secp256k1_prehashed its 32-byte digest.
            algorithm: ed25519, secp256k1 (or k256; signs the SHA-256 of the message), or
                secp256k1_prehashed.

        Returns:
            The signature (64 bytes; deterministic, low s), its chain of three, the public key.

        Raises:
            UsageError: If `data` is not `bytes`, the algorithm is unknown, a digest does not have
                32 bytes, or the AppKeys are closed.
        """
        require_bytes("data to sign", data)
        key_type, message = prepare_message(algorithm, data)
        if algorithm == PREHASHED and len(data) != 32:
            text = f"Pre-hashed signing requires a 32-byte digest, but received {len(data)} bytes"
            raise UsageError(text, reason="wrong_size")
        key, chain = self._app_keys.signer(key_type)
        signature = key.sign(message)
        return Signature(signature, (signature, *chain), key.public_key)

    def __repr__(self) -> str:
        return f"LocalKeys({self._app_keys!r})"


def compute_public_key(algorithm: str, key: bytes) -> bytes:
    """Return the public key of a private key of 32 bytes, encoded as `DerivedKey.public_key`.

    `algorithm`: secp256k1, ed25519 or x25519.

    Raises:
        UsageError: If `key` is not valid for the algorithm.
    """
    if algorithm not in {"ed25519", "x25519"}:
        return k256_public_key(key)
    # Lazy: imports a library that most programs do not need.
    from attestkit._crypto.ed25519 import ed25519_public_key, x25519_public_key

    return x25519_public_key(key) if algorithm == "x25519" else ed25519_public_key(key)
