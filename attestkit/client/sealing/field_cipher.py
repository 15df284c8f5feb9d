"""Encryption of single texts to a public key (sealing), for protocols that seal fields of JSON.

A sealed text is an ephemeral public key, a nonce, and the ciphertext with its tag. The key is
HKDF-SHA256 of the shared secret, without salt; boxes of NaCl derive theirs otherwise.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final, Literal

from attestkit._argument_checks import require_size
from attestkit._crypto.aead import IV_SIZE, aes_gcm_decrypt, aes_gcm_encrypt
from attestkit._crypto.ecdsa import k256_public_key
from attestkit._crypto.ed25519 import (
    ed25519_public_key,
    ed25519_seed_to_x25519,
    ed25519_to_x25519,
    x25519,
    x25519_public_key,
)
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.k256_agreement import k256_shared_secret, require_k256_point
from attestkit._crypto.sodium_ciphers import (
    SODIUM_NONCE_SIZE,
    box_decrypt,
    box_encrypt,
    xchacha20_decrypt,
    xchacha20_encrypt,
)
from attestkit._crypto.zeroize import Secret, wipe, wipe_field
from attestkit.client.sealing.protocol import sealing_errors
from attestkit.errors import ServiceError, UsageError

Curve = Literal["ed25519", "x25519", "secp256k1"]
"""Curve of the keys that the parties publish.

`ed25519`: Ed25519 keys, which are mapped to X25519. `x25519`: X25519 keys. `secp256k1`:
uncompressed SEC1.
"""

Aead = Literal["aes-256-gcm", "xchacha20-poly1305", "box"]
"""Cipher; `box` is XSalsa20-Poly1305 with the key derivation of NaCl."""

TAG_SIZE: Final = 16
"""Bytes of the tag of each cipher."""

_AEADS: Final = {
    "aes-256-gcm": (aes_gcm_encrypt, aes_gcm_decrypt),
    "xchacha20-poly1305": (xchacha20_encrypt, xchacha20_decrypt),
}
_X25519_SIZE: Final = 32
_K256_SIZE: Final = 65
_KEY_SIZE: Final = 32  # of the cipher


class ClientKey(Secret):
    """A key pair of one request, to which its answer is encrypted; wiped when it is destroyed."""

    __slots__ = ("public_key", "secret")

    def __init__(self, public_key: bytes, secret: bytes) -> None:
        """Store the key pair.

        Args:
            public_key: The public key in the form that the protocol sends.
            secret: The X25519 or secp256k1 scalar, 32 bytes.
        """
        self.public_key: bytes = public_key
        self.secret: bytes = secret

    def __del__(self, *, _wipe: Callable[[object, str], None] = wipe_field) -> None:
        _wipe(self, "secret")

    def __repr__(self) -> str:
        return f"ClientKey({self.public_key.hex()})"


class FieldCipher:
    """Encrypts texts to a public key, and decrypts them. Immutable, thread-safe."""

    __slots__ = ("_aead", "_curve", "_info", "_nonce_size", "key_size", "overhead")

    def __init__(self, curve: Curve, aead: Aead, info: bytes = b"") -> None:
        """Choose the algorithms.

        Args:
            curve: Curve of the public keys.
            aead: Cipher.
            info: Context string of HKDF; the cipher `box` does not use it.
        """
        self._curve: Curve = curve
        self._aead: Aead = aead
        self._info: bytes = info
        self._nonce_size: int = IV_SIZE if aead == "aes-256-gcm" else SODIUM_NONCE_SIZE
        self.key_size: int = _K256_SIZE if curve == "secp256k1" else _X25519_SIZE
        """Bytes of a public key."""
        self.overhead: int = self.key_size + self._nonce_size + TAG_SIZE
        """Bytes that a sealed text has more than its plaintext."""

    def new_key(self) -> ClientKey:
        """Return a new key pair for the answer to one request."""
        seed = secrets.token_bytes(_KEY_SIZE)
        if self._curve == "ed25519":
            return ClientKey(ed25519_public_key(seed), ed25519_seed_to_x25519(seed))
        if self._curve == "x25519":
            return ClientKey(x25519_public_key(seed), seed)
        return ClientKey(k256_public_key(seed, compressed=False), seed)

    def check_key(self, public_key: bytes) -> None:
        """Check that a public key is one of the curve.

        Args:
            public_key: 32 bytes of Ed25519 or X25519, or 65 of secp256k1 (uncompressed SEC1).

        Raises:
            ServiceError: If it is not a valid key of the curve (reason `sealing`).
        """
        with sealing_errors("key to encrypt to: "):
            if self._curve == "ed25519":
                ed25519_to_x25519(public_key)
            elif self._curve == "secp256k1":
                require_k256_point(public_key)
            else:
                require_size("X25519 public key", public_key, _X25519_SIZE)

    def seal(self, public_key: bytes, plaintext: bytes, associated: bytes = b"") -> bytes:
        """Return a text encrypted to a public key: ephemeral key, nonce, ciphertext and tag.

        Args:
            public_key: Key of the curve: 32 bytes of Ed25519 or X25519, or 65 of secp256k1
                (uncompressed SEC1).
            plaintext: The text in UTF-8.
            associated: Associated data; the cipher `box` does not use them.

        Raises:
            ServiceError: If the key is not valid (reason `sealing`).
        """
        ephemeral = secrets.token_bytes(_KEY_SIZE)
        nonce = secrets.token_bytes(self._nonce_size)
        peer = public_key
        try:
            if self._curve == "secp256k1":
                published = k256_public_key(ephemeral, compressed=False)
            else:
                published = x25519_public_key(ephemeral)
            if self._curve == "ed25519":
                peer = ed25519_to_x25519(public_key)
            if self._aead == "box":
                return published + nonce + box_encrypt(ephemeral, peer, nonce, plaintext)
            encrypt, _ = _AEADS[self._aead]
            with self._shared_key(ephemeral, peer) as key:
                return published + nonce + encrypt(key, nonce, plaintext, associated)
        except UsageError as error:
            raise ServiceError(f"key to encrypt to: {error}", reason="sealing") from error
        finally:
            wipe(ephemeral)

    def open(self, key: ClientKey, sealed: bytes, associated: bytes = b"") -> bytes:
        """Return the plaintext of a text that was encrypted to a key.

        Args:
            key: Key pair of the request whose answer has the text.
            sealed: Ephemeral public key, nonce, ciphertext and tag.
            associated: Associated data of the encryption.

        Raises:
            ServiceError: If `sealed` is truncated, was changed, or was encrypted to a different key
                or with different associated data (reason `sealing`).
        """
        if len(sealed) < self.overhead:
            message = f"encrypted text: must be {self.overhead} bytes or more, not {len(sealed)}"
            raise ServiceError(message, reason="sealing")
        at = self.key_size + self._nonce_size
        peer, nonce = sealed[: self.key_size], sealed[self.key_size : at]
        with sealing_errors("encrypted text: "):
            if self._aead == "box":
                return box_decrypt(key.secret, peer, nonce, sealed[at:])
            _, decrypt = _AEADS[self._aead]
            with self._shared_key(key.secret, peer) as shared:
                return decrypt(shared, nonce, sealed[at:], associated)

    @contextmanager
    def _shared_key(self, secret: bytes, peer: bytes) -> Iterator[bytes]:
        """Context manager: yield the symmetric key of two parties, and wipe it on exit.

        Args:
            secret: Own private key: the X25519 or secp256k1 scalar, 32 bytes.
            peer: Public key of the other party: X25519, or secp256k1 in uncompressed SEC1.
        """
        agree = k256_shared_secret if self._curve == "secp256k1" else x25519
        shared, key = agree(secret, peer), b""
        try:
            key = hkdf_sha256(shared, self._info, _KEY_SIZE, b"")
            yield key
        finally:
            wipe(shared)
            wipe(key)

    def __repr__(self) -> str:
        return f"FieldCipher({self._curve}, {self._aead})"
