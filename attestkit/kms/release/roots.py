"""Root keys of a simulated KMS, and what they derive and sign for an app.

Compose hash, image and device do not enter any derivation: an authorized upgrade keeps all keys.
The derivations are those of dstack's KMS (dstack, kms).
"""

import json
import os
from collections.abc import Callable
from typing import Final, NamedTuple

from attestkit._argument_checks import require_bytes, require_size
from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.ed25519 import x25519_public_key
from attestkit._crypto.hashes import keccak256
from attestkit._crypto.zeroize import Secret, own_copy, wipe, wipe_field
from attestkit.backends.simulator.pki.cloud_pki import (
    CA_LABEL,
    K256_LABEL,
    derive_kms_bytes,
    make_scalar,
)
from attestkit.errors import UsageError
from attestkit.keys.hkdf import derive_bytes, derive_p256, derive_x25519
from attestkit.keys.key_claims import check_app_id, kms_claim
from attestkit.kms.root import KmsRoot

_MAX_EPOCH: Final = 1_000_000  # replacements of the roots in one simulation
# Names of the keys that have certificates, and their labels in a seed.
ROOT_CA: Final = "root-ca"
TEMP_CA: Final = "temp-ca"
RPC: Final = "rpc"
_CERTIFIED: Final = (ROOT_CA, TEMP_CA, RPC)
_INSTANCE_ID_SIZES: Final = (0, 20)
_ENV_TAG: Final = b"dstack-env-encrypt-pubkey:"
_U64: Final = 1 << 64
_BOOTSTRAP: Final = "dstack-kms-genereted-keys-v1:{};{};"  # spelled as upstream spells it


class KmsRoots(Secret):
    """The private keys of a simulated KMS; they are wiped when the object is destroyed.

    Args:
        ca_key: Key of the root CA, from which disk, environment and app CA keys are derived.
        k256_secret: secp256k1 root key, 32 bytes, from which the apps' k256 keys are derived.
        temp_ca_key: Key of the temporary CA. The KMS gives it to every client.
        rpc_key: TLS key of the server.
        seed: The seed from which all these keys are derived, or empty.
        epoch: Number of replacements of the roots.

    Raises:
        UsageError: If `k256_secret` is not a secp256k1 scalar.
    """

    __slots__ = (
        "_k256_secret",
        "_seed",
        "ca_key",
        "epoch",
        "k256_key",
        "rpc_key",
        "temp_ca_key",
    )

    def __init__(
        self,
        *,
        ca_key: P256Key,
        k256_secret: bytes,
        temp_ca_key: P256Key,
        rpc_key: P256Key,
        seed: bytes = b"",
        epoch: int = 0,
    ) -> None:
        require_bytes("secp256k1 root key", k256_secret)
        self.k256_key: K256Key = K256Key(k256_secret)
        self._k256_secret = own_copy(k256_secret)
        self._seed = own_copy(seed)
        self.epoch: int = epoch
        self.ca_key: P256Key = ca_key
        self.temp_ca_key: P256Key = temp_ca_key
        self.rpc_key: P256Key = rpc_key

    @classmethod
    def generate(cls, random: Callable[[int], bytes] = os.urandom) -> "KmsRoots":
        """Generate new keys; `random` returns a number of random bytes."""
        return cls._from_stream(lambda _label, size: random(size))

    @classmethod
    def from_seed(cls, seed: bytes, *, epoch: int = 0) -> "KmsRoots":
        """Derive the keys from a seed of 32 bytes; the certificates are then deterministic too.

        Args:
            seed: 32 bytes. May be the seed of a simulated TEE, because the salts differ.
            epoch: Number of replacements of the roots; other keys are the same in all epochs.

        Raises:
            UsageError: If the seed does not have 32 bytes, or the epoch is not 0 to 1,000,000.
        """
        require_bytes("KMS seed", seed, 32)
        if not 0 <= epoch <= _MAX_EPOCH:
            message = f"KMS epoch: must be 0 to {_MAX_EPOCH}, not {epoch}"
            raise UsageError(message, reason="out_of_range")
        return cls._from_stream(
            lambda label, size: derive_kms_bytes(seed, label, size), seed, epoch
        )

    @classmethod
    def _from_stream(
        cls, stream: Callable[[str, int], bytes], seed: bytes = b"", epoch: int = 0
    ) -> "KmsRoots":
        replaced = f"@{epoch}" if epoch else ""
        labels = (f"{CA_LABEL}{replaced}", f"{K256_LABEL}{replaced}", "p256/temp-ca", "p256/rpc")
        scalars = [make_scalar(stream, label) for label in labels]
        try:
            ca, k256, temp_ca, rpc = scalars
            return cls(
                ca_key=P256Key.from_scalar(ca),
                k256_secret=k256,
                temp_ca_key=P256Key.from_scalar(temp_ca),
                rpc_key=P256Key.from_scalar(rpc),
                seed=seed,
                epoch=epoch,
            )
        finally:
            for scalar in scalars:
                wipe(scalar)

    def successor(self, random: Callable[[int], bytes] = os.urandom) -> "KmsRoots":
        """Return new roots with the same temporary CA and TLS keys, as after a replacement.

        They are those of the next epoch of the seed, or random without a seed.
        """
        if self._seed:
            return self.from_seed(self._seed, epoch=self.epoch + 1)
        fresh = self.generate(random)
        secret = fresh.k256_secret
        try:
            return KmsRoots(
                ca_key=fresh.ca_key,
                k256_secret=secret,
                temp_ca_key=self.temp_ca_key,
                rpc_key=self.rpc_key,
                epoch=self.epoch + 1,
            )
        finally:
            wipe(secret)

    @property
    def is_seeded(self) -> bool:
        """Whether the keys are from a seed."""
        return bool(self._seed)

    @property
    def k256_secret(self) -> bytes:
        """A copy of the secp256k1 root key, 32 bytes, which the caller may wipe."""
        return own_copy(self._k256_secret)

    @property
    def ca_spki(self) -> bytes:
        """SubjectPublicKeyInfo of the root CA in DER, 91 bytes."""
        return self.ca_key.spki_der

    @property
    def k256_public_key(self) -> bytes:
        """Public secp256k1 root key, 33 bytes (compressed SEC1)."""
        return self.k256_key.public_key

    @property
    def public_root(self) -> KmsRoot:
        """The public root keys, for clients to pin."""
        return KmsRoot(self.ca_spki, self.k256_public_key)

    @property
    def provider_id(self) -> str:
        """Key provider id of this KMS: hex of `ca_spki`."""
        return self.ca_spki.hex()

    def serial_number(self, name: str) -> int | None:
        """Return the serial number that the seed gives a certificate; None without a seed.

        Args:
            name: `ROOT_CA`, `TEMP_CA` or `RPC`.

        Raises:
            UsageError: If `name` is unknown.
        """
        if name not in _CERTIFIED:
            message = f"KMS certificate: must be {' or '.join(_CERTIFIED)}, not {name[:50]!r}"
            raise UsageError(message, reason="unknown_name")
        if not self._seed:
            return None
        replaced = f"@{self.epoch}" if name == ROOT_CA and self.epoch else ""
        serial = bytearray(derive_kms_bytes(self._seed, f"serial/{name}{replaced}", 20))
        serial[0] = serial[0] & 0x3F | 0x40  # positive, and always 20 bytes
        return int.from_bytes(serial, "big")

    def __del__(self, *, _wipe: Callable[[object, str], None] = wipe_field) -> None:
        _wipe(self, "_k256_secret")
        _wipe(self, "_seed")

    def __repr__(self) -> str:
        return f"KmsRoots(simulated, provider_id={self.provider_id})"


class ReleasedKeys(Secret):
    """The keys that GetAppKey releases to an app's instance; wiped when the object is destroyed.

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
    """X25519 key for encrypted environments of an app, with signatures by the root key and time."""

    public_key: bytes  # X25519, 32 bytes
    signature: bytes  # 65 bytes; without a time, so it can be replayed
    timestamp: int  # seconds since 1970
    signature_v1: bytes  # 65 bytes, over the time too


def release_app_keys(roots: KmsRoots, app_id: bytes, instance_id: bytes) -> ReleasedKeys:
    """Derive the keys that GetAppKey releases to an instance of an app.

    Args:
        roots: Keys of the KMS.
        app_id: 20 bytes, because the parts of a derivation are concatenated without lengths.
        instance_id: 20 bytes or empty; all instances with an empty id share the disk key.

    Raises:
        UsageError: If an id has a wrong size.
    """
    check_app_id(app_id)
    require_bytes("instance_id", instance_id)
    if len(instance_id) not in _INSTANCE_ID_SIZES:
        message = f"instance_id: must have 20 bytes or be empty, not {len(instance_id)} bytes"
        raise UsageError(message, reason="wrong_size")
    return ReleasedKeys(roots, app_id, instance_id)


def derive_app_ca(roots: KmsRoots, app_id: bytes) -> P256Key:
    """Derive the key of an app's CA, which the KMS does not release, from the app id, 20 bytes.

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
    """Derive an app's secp256k1 root key, 32 bytes, from the app id, which the caller checks."""
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
    """Return the payload of the event `key-provider` for a KMS: compact JSON with name and id.

    Args:
        ca_spki: SubjectPublicKeyInfo of the root CA in DER, 91 bytes.

    Raises:
        UsageError: If `ca_spki` does not have 91 bytes.
    """
    require_size("ca_spki", ca_spki, 91)
    return json.dumps({"name": "kms", "id": ca_spki.hex()}, separators=(",", ":")).encode()


def bootstrap_report_data(ca_spki: bytes, k256_public_key: bytes) -> bytes:
    """Return the report data (64 bytes) by which a KMS binds evidence to its roots.

    Args:
        ca_spki: SubjectPublicKeyInfo of the root CA in DER, 91 bytes.
        k256_public_key: secp256k1 root key, 33 bytes (compressed SEC1).

    Raises:
        UsageError: If an argument has a wrong size.
    """
    require_size("ca_spki", ca_spki, 91)
    require_size("k256_public_key", k256_public_key, 33)
    text = _BOOTSTRAP.format(ca_spki.hex(), k256_public_key.hex())
    return keccak256(text.encode()) + bytes(32)


def _env_key(roots: KmsRoots, app_id: bytes) -> bytes:
    return _from_ca(roots, app_id, b"env-encrypt-key")


def _from_ca(roots: KmsRoots, *parts: bytes) -> bytes:
    """Derive an X25519 secret, 32 bytes, from the root CA key; `parts` are the context."""
    scalar = roots.ca_key.scalar
    try:
        return derive_x25519(scalar, *parts)
    finally:
        wipe(scalar)


def _sign(roots: KmsRoots, message: bytes) -> bytes:
    return roots.k256_key.sign_recoverable(keccak256(message))
