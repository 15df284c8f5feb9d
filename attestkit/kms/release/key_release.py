"""Keys that a KMS derives for an app, and its statements about them (key-derivation.md, 4).

Compose hash, image and device do not enter any derivation: an authorized upgrade keeps all keys.
"""

import json
from collections.abc import Callable
from typing import Final, NamedTuple

from attestkit._argument_checks import require_bytes, require_size
from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hashes import keccak256
from attestkit._crypto.zeroize import Secret, own_copy, wipe, wipe_field
from attestkit.errors import UsageError
from attestkit.keys.hkdf import derive_bytes, derive_p256, derive_x25519
from attestkit.keys.key_claims import check_app_id, kms_claim
from attestkit.kms.release.roots import KmsRoots

_INSTANCE_ID_SIZES: Final = (0, 20)
_ENV_TAG: Final = b"dstack-env-encrypt-pubkey:"
_U64: Final = 1 << 64
_BOOTSTRAP: Final = "dstack-kms-genereted-keys-v1:{};{};"  # spelled as upstream spells it


class ReleasedKeys(Secret):
    """The keys that GetAppKey releases; they are wiped when the object is destroyed.

    Each access to a key returns a copy, which the caller may wipe.
    """

    __slots__ = ("_disk_crypt_key", "_env_crypt_key", "_k256_key", "k256_signature")

    def __init__(self, roots: KmsRoots, app_id: bytes, instance_id: bytes) -> None:
        self._disk_crypt_key = _from_ca(roots, app_id, instance_id, b"app-disk-crypt-key")
        self._env_crypt_key = _env_key(roots, app_id)
        self._k256_key = derive_app_root(roots, app_id)
        public = K256Key(self._k256_key).public_key
        # r, s and recovery id, 65 bytes: the statement that this is the root key of the app.
        self.k256_signature: bytes = _sign(roots, kms_claim(app_id, public))

    @property
    def disk_crypt_key(self) -> bytes:
        """The key of the encrypted disk, 32 bytes."""
        return own_copy(self._disk_crypt_key)

    @property
    def env_crypt_key(self) -> bytes:
        """The X25519 secret for encrypted environments, 32 bytes."""
        return own_copy(self._env_crypt_key)

    @property
    def k256_key(self) -> bytes:
        """The app's secp256k1 root key, 32 bytes."""
        return own_copy(self._k256_key)

    def __del__(self, *, _wipe: Callable[[object, str], None] = wipe_field) -> None:
        for name in ("_disk_crypt_key", "_env_crypt_key", "_k256_key"):
            _wipe(self, name)

    def __repr__(self) -> str:
        return "ReleasedKeys(simulated)"


class EnvPublicKey(NamedTuple):
    """Public key for encrypted environments of an app, signed by the secp256k1 root key."""

    public_key: bytes  # X25519, 32 bytes
    signature: bytes  # 65 bytes; without a time, so it can be replayed
    timestamp: int  # seconds since 1970
    signature_v1: bytes  # 65 bytes, over the time too


def release_app_keys(roots: KmsRoots, app_id: bytes, instance_id: bytes) -> ReleasedKeys:
    """Derive the keys of an instance of an app.

    Args:
        roots: Keys of the KMS.
        app_id: 20 bytes, because the parts of a derivation are concatenated without lengths.
        instance_id: 20 bytes or empty; all instances with an empty id share the disk key.

    Raises:
        UsageError: If an id has another size.
    """
    check_app_id(app_id)
    require_bytes("instance_id", instance_id)
    if len(instance_id) not in _INSTANCE_ID_SIZES:
        message = f"instance_id: must have 20 bytes or be empty, not {len(instance_id)} bytes"
        raise UsageError(message, reason="wrong_size")
    return ReleasedKeys(roots, app_id, instance_id)


def derive_app_ca(roots: KmsRoots, app_id: bytes) -> P256Key:
    """Derive the key of the app's CA, which the KMS does not release.

    Raises:
        UsageError: If the app id does not have 20 bytes.
    """
    check_app_id(app_id)
    scalar = roots.ca_key.scalar
    try:
        return derive_p256(scalar, app_id, b"app-ca")
    finally:
        wipe(scalar)


def derive_app_root(roots: KmsRoots, app_id: bytes) -> bytes:
    """Derive the secp256k1 root key of an app, 32 bytes; the caller checks the app id."""
    secret = roots.k256_secret
    try:
        return derive_bytes(secret, app_id, b"app-key")
    finally:
        wipe(secret)


def sign_env_public_key(roots: KmsRoots, app_id: bytes, timestamp: int) -> EnvPublicKey:
    """Return the public key for an app's environments, signed without and with the timestamp.

    Args:
        roots: Keys of the KMS.
        app_id: 20 bytes.
        timestamp: Seconds since 1970.

    Raises:
        UsageError: If the app id does not have 20 bytes, or the time does not fit into 8 bytes.
    """
    check_app_id(app_id)
    if not 0 <= timestamp < _U64:
        message = f"timestamp: must be 0 to 2^64 - 1, not {timestamp}"
        raise UsageError(message, reason="out_of_range")
    secret = _env_key(roots, app_id)
    try:
        public = x25519_public_key(secret)
    finally:
        wipe(secret)
    moment = timestamp.to_bytes(8, "big")
    legacy = _sign(roots, _ENV_TAG + app_id + public)
    return EnvPublicKey(
        public, legacy, timestamp, _sign(roots, _ENV_TAG + app_id + moment + public)
    )


def key_provider_info(ca_spki: bytes) -> bytes:
    """Return the payload of the event `key-provider` for a KMS: compact JSON.

    Args:
        ca_spki: SubjectPublicKeyInfo of the root CA in DER, 91 bytes.

    Raises:
        UsageError: If `ca_spki` does not have 91 bytes.
    """
    require_size("ca_spki", ca_spki, 91)
    return json.dumps({"name": "kms", "id": ca_spki.hex()}, separators=(",", ":")).encode()


def bootstrap_report_data(ca_spki: bytes, k256_public_key: bytes) -> bytes:
    """Return the report data (64 bytes) by which a KMS binds evidence to its roots (kms.md, 1.7).

    Args:
        ca_spki: SubjectPublicKeyInfo of the root CA in DER, 91 bytes.
        k256_public_key: secp256k1 root key, 33 bytes (compressed SEC1).

    Raises:
        UsageError: If an argument has another size.
    """
    require_size("ca_spki", ca_spki, 91)
    require_size("k256_public_key", k256_public_key, 33)
    text = _BOOTSTRAP.format(ca_spki.hex(), k256_public_key.hex())
    return keccak256(text.encode()) + bytes(32)


def _env_key(roots: KmsRoots, app_id: bytes) -> bytes:
    return _from_ca(roots, app_id, b"env-encrypt-key")


def _from_ca(roots: KmsRoots, *parts: bytes) -> bytes:
    """Derive an X25519 secret from the root CA key, 32 bytes."""
    scalar = roots.ca_key.scalar
    try:
        return derive_x25519(scalar, *parts)
    finally:
        wipe(scalar)


def _sign(roots: KmsRoots, message: bytes) -> bytes:
    return roots.k256_key.sign_recoverable(keccak256(message))
