"""The private keys of a simulated KMS (kms.md, sections 1.7 and 8.2)."""

import os
from collections.abc import Callable
from typing import Final

from attestkit._argument_checks import require_bytes, require_size
from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.zeroize import Secret, own_copy, wipe, wipe_field
from attestkit.backends.simulator.pki.cloud_pki import (
    CA_LABEL,
    K256_LABEL,
    derive_kms_bytes,
    make_scalar,
)
from attestkit.errors import UsageError
from attestkit.kms.root import KmsRoot

_MAX_EPOCH: Final = 1_000_000  # replacements of the roots in one simulation
# Names of the keys that have certificates, and their labels in a seed.
ROOT_CA: Final = "root-ca"
TEMP_CA: Final = "temp-ca"
RPC: Final = "rpc"
_CERTIFIED: Final = (ROOT_CA, TEMP_CA, RPC)


class KmsRoots(Secret):
    """The private keys of a simulated KMS; they are wiped when the object is destroyed.

    Args:
        ca_key: Key of the root CA, of which disk, environment and app CA keys are derived.
        k256_secret: secp256k1 root key, 32 bytes, of which the apps' k256 keys are derived.
        temp_ca_key: Key of the temporary CA. The KMS gives it to every client.
        rpc_key: TLS key of the server.
        seed: The seed of which all of them are, or empty.
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
        """Generate new keys; `random` returns that many random bytes."""
        return cls._from_stream(lambda _label, size: random(size))

    @classmethod
    def from_seed(cls, seed: bytes, *, epoch: int = 0) -> "KmsRoots":
        """Derive the keys from a seed of 32 bytes; the certificates are then deterministic too.

        Args:
            seed: 32 bytes. May be the seed of a simulated TEE, because the salts differ.
            epoch: Number of replacements of the roots; other keys are the same in all epochs.

        Raises:
            UsageError: If the seed does not have 32 bytes, or the epoch is out of range.
        """
        require_bytes("KMS seed", seed)
        require_size("KMS seed", seed, 32)
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
        """Return the serial number of a certificate from a seed; None without a seed.

        Args:
            name: `ROOT_CA`, `TEMP_CA` or `RPC`.
        """
        if name not in _CERTIFIED:
            raise UsageError("KMS certificate: unknown name", reason="unknown_name")
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
