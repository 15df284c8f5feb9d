"""The keys of one application, and what its root key signs."""

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.hashes import keccak256
from attestkit._crypto.zeroize import Secret, wipe
from attestkit._system.untrusted_files import read_regular
from attestkit.errors import ConfigError, UsageError
from attestkit.keys.hkdf import derive_bytes, derive_p256, derive_x25519, utf8
from attestkit.keys.key_file import LARGEST, ProviderName, read_app_keys

if TYPE_CHECKING:
    from typing_extensions import Self

    from attestkit._crypto.ed25519 import Ed25519Key
else:
    Self = TypeVar("Self")  # for who reads the hints while the program runs

__all__ = ["AppKeys"]


_SIGNING_PATH: Final = b"vms"
_SIGNING_PURPOSE: Final = "signing"
# A local authority has no natural lifetime; from one seed its certificate must always be the same.
_CA_NOT_BEFORE: Final = 157_766_400  # 1975-01-01, as the agent's certificates
_CA_NOT_AFTER: Final = 2_524_607_999  # 2049-12-31T23:59:59, the last that UTCTime can say


class AppKeys(Secret):
    """The keys of one application, as `.appkeys.json` of the dstack guest agent holds them.

    Make one with `load`, `from_json`, `from_seed` or `generate`. After `close()`, or outside of
    the `with` block, every secret is refused with a UsageError. What Python copied meanwhile, and
    the copies inside the cryptography packages, cannot be wiped.
    """

    def __init__(
        self,
        *,
        k256_key: bytes,
        ca_cert: str | None,
        ca_key: P256Key | None,
        key_provider: ProviderName = "none",
        key_provider_id: str = "",
        k256_signature: bytes = b"",
        env_crypt_key: bytes = b"",
        disk_crypt_key: bytes = b"",
        gateway_app_id: str = "",
    ) -> None:
        """Take the fields of the file, secrets as bytes.

        Without `ca_cert` a local authority's own is made of `ca_key` when it is first asked for.

        Raises:
            UsageError: `k256_key` is no secp256k1 scalar.
        """
        self._ca_cert = ca_cert
        self.key_provider = key_provider
        self.key_provider_id = key_provider_id
        self.k256_signature = k256_signature
        self.gateway_app_id = gateway_app_id
        self._root: K256Key | None = K256Key(k256_key)
        self._ca_key = ca_key
        self._signers: dict[str, tuple[K256Key | Ed25519Key, tuple[bytes, ...]]] = {}
        self._secrets = {
            "k256_key": bytearray(k256_key),
            "env_crypt_key": bytearray(env_crypt_key),
            "disk_crypt_key": bytearray(disk_crypt_key),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, follow: bool = True) -> "AppKeys":
        """Read the agent's key file.

        Args:
            path: where; a regular file, or a pipe that was handed over, as `/dev/stdin`.
            follow: whether it may be a link, which in a folder of somebody else's it should not.

        Raises:
            ConfigError: the file cannot be read or is wrong; the text names file, key and reason.
        """
        try:
            data = read_regular(path, LARGEST + 1, follow=follow)  # one more is refused
        except OSError as error:
            raise ConfigError(f"{path}: {error.strerror or error}") from error
        try:
            return cls.from_json(data, name=str(path))
        finally:
            wipe(data)

    @classmethod
    def from_json(cls, text: str | bytes, *, name: str = "") -> "AppKeys":
        """Read the agent's key file from its text; `name` is the file's name, for errors.

        Raises:
            ConfigError: the text is wrong; the error names file, key and reason, never a value.
        """
        return read_app_keys(cls, text, name)

    @classmethod
    def from_seed(cls, seed: bytes) -> "AppKeys":
        """Derive all keys from a 32-byte seed, as the agent's local key providers do.

        The same seed gives the same keys and the same certificate, byte for byte. There is no KMS
        behind them, so `k256_signature` and `env_crypt_key` are empty.

        Raises:
            UsageError: the seed is not 32 bytes.
        """
        if len(seed) != 32:
            raise UsageError(f"a seed is 32 bytes, not {len(seed)}")
        root, disk = derive_bytes(seed, b"app-k256-key"), derive_x25519(seed, b"app-disk-key")
        try:
            ca_key = derive_p256(seed, b"app-key")
            return cls(k256_key=root, ca_cert=None, ca_key=ca_key, disk_crypt_key=disk)
        finally:
            wipe(root)
            wipe(disk)

    @classmethod
    def generate(cls, random: Callable[[int], bytes] = os.urandom) -> "AppKeys":
        """Make keys from a random seed; `random` returns that many random bytes."""
        return cls.from_seed(random(32))

    @property
    def k256_key(self) -> bytes:
        """The application's root key: 32 bytes, secp256k1 scalar and input of derivations."""
        return self._secret("k256_key")

    @property
    def env_crypt_key(self) -> bytes:
        """The X25519 secret of encrypted environments, 32 bytes or none."""
        return self._secret("env_crypt_key")

    @property
    def disk_crypt_key(self) -> bytes:
        """The key of the encrypted disk, 32 bytes or none."""
        return self._secret("disk_crypt_key")

    @property
    def ca_cert(self) -> str:
        """The certificate (PEM) of the app's authority.

        That of keys from a seed is made at the first call; UsageError once they are closed.
        """
        if self._ca_cert is None:
            # Late: X.509 is slow to import, and most programs never issue a certificate.
            from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca

            key = self.ca_key
            assert key is not None
            issued = issue_ca(
                key=key,
                subject="App Root Cert",
                path_length=1,
                not_before=_CA_NOT_BEFORE,
                not_after=_CA_NOT_AFTER,
            )
            self._ca_cert = certificate_pem(issued)
        return self._ca_cert

    @property
    def ca_key(self) -> P256Key | None:
        """The key of `ca_cert`; None with a KMS, which keeps it to itself."""
        key = self._ca_key
        self._root_key()  # behind it, see `close`
        return key

    @property
    def root_public_key(self) -> bytes:
        """The public half of `k256_key`, 33 bytes of compressed SEC1."""
        return self._root_key().public_key

    def derive(self, path: bytes) -> bytes:
        """Return 32 bytes derived from the root key, of which no copy is made."""
        derived = derive_bytes(self._secrets["k256_key"], path)
        self._root_key()  # behind it, see `close`
        return derived

    def endorse(self, public_key: bytes, purpose: str) -> tuple[bytes, bytes]:
        """Return the signature chain of a derived key.

        First the root key's recoverable signature (65 bytes) over the Keccak-256 of purpose, colon
        and the public key in lower-case hex; then `k256_signature`.
        """
        text = utf8("purpose", purpose) + b":" + public_key.hex().encode()
        return self._root_key().sign_recoverable(keccak256(text)), self.k256_signature

    def signer(self, algorithm: str) -> "tuple[K256Key | Ed25519Key, tuple[bytes, ...]]":
        """Return the signing key (path `vms`) of `secp256k1` or `ed25519` and its chain.

        It is prepared once and kept until `close()`: it protects nothing that the root key, which
        is kept too, does not.
        """
        self._root_key()
        found = self._signers.get(algorithm)
        if found is None:
            from attestkit._crypto.ed25519 import Ed25519Key  # late: not every app signs

            secret = self.derive(_SIGNING_PATH)
            key: K256Key | Ed25519Key
            key = Ed25519Key(secret) if algorithm == "ed25519" else K256Key(secret)
            wipe(secret)
            found = key, self.endorse(key.public_key, _SIGNING_PURPOSE)
            self._signers[algorithm] = found
            if self._root is None:  # it was closed meanwhile, perhaps before this was put there
                self._signers.clear()
                self._root_key()
        return found

    def close(self) -> None:
        """Wipe what can be wiped and let go of the rest. A second call does nothing.

        A thread that uses the keys meanwhile has the right ones or is refused.
        """
        # First: whoever takes a secret looks at this afterwards, and so never has one half wiped.
        self._root = None
        self._ca_key = None
        for secret in self._secrets.values():
            wipe(secret)
        self._signers.clear()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        root = self._root
        state = "closed" if root is None else root.public_key.hex()
        return f"AppKeys(key_provider={self.key_provider!r}, root_public_key={state})"

    def _root_key(self) -> K256Key:
        root = self._root
        if root is None:
            raise UsageError("these AppKeys are closed")
        return root

    def _secret(self, name: str) -> bytes:
        value = bytes(self._secrets[name])
        self._root_key()  # behind it, see `close`
        return value
