"""Keys of an application, and signatures by its root key."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from attestkit._crypto.ecdsa import K256Key, P256Key
from attestkit._crypto.hashes import keccak256
from attestkit._crypto.x509.agent_validity import END_OF_2049, YEAR_1975
from attestkit._crypto.zeroize import Secret, wipe
from attestkit._system.atomic_file import remove_abandoned, replace_file
from attestkit._system.untrusted_files import read_regular
from attestkit.errors import ConfigError, UsageError
from attestkit.keys import hkdf
from attestkit.keys.key_claims import v0_claim, v1_claim
from attestkit.keys.key_file import (
    LARGEST,
    KmsProvider,
    ProviderName,
    read_app_keys,
    write_app_keys,
)

if TYPE_CHECKING:
    from typing_extensions import Self

    from attestkit._crypto.ed25519 import Ed25519Key
else:
    Self = TypeVar("Self")  # so that type hints can be evaluated at run time

_SIGNING_PATH: Final = b"vms"
_SIGNING_PURPOSE: Final = "signing"


class AppKeys(Secret):
    """Keys of an application, as in `.appkeys.json` of the dstack guest agent.

    Create one with `load`, `from_json`, `from_seed` or `generate`. After `close()`, or after the
    `with` block, access to a key, `root_public_key` or `kms_provider` raises UsageError. Copies
    that Python or the cryptography packages made cannot be wiped.
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
        kms_provider: KmsProvider | None = None,
    ) -> None:
        """Store the fields of a key file.

        Args:
            k256_key: Root key, a secp256k1 scalar of 32 bytes.
            ca_cert: Certificate of the app's CA, PEM. None: issued with `ca_key` on first access.
            ca_key: Private key of the CA; None only with a KMS.
            key_provider: Kind of the key provider: none, local, tpm or kms.
            key_provider_id: Id of the key provider in hex; empty without one.
            k256_signature: Signature of the KMS over the public root key, 65 bytes; empty without a
                KMS.
            env_crypt_key: X25519 secret for encrypted environments, 32 bytes or empty.
            disk_crypt_key: Key of the encrypted disk, 32 bytes or empty.
            gateway_app_id: App id of the gateway; empty without one.
            kms_provider: URL and temporary CA of the KMS; None without one.

        Raises:
            UsageError: If `k256_key` is not a secp256k1 scalar.
        """
        self._ca_cert = ca_cert
        self.key_provider: ProviderName = key_provider
        self.key_provider_id = key_provider_id
        self.k256_signature = k256_signature
        self.gateway_app_id = gateway_app_id
        self._root: K256Key | None = K256Key(k256_key)
        self._ca_key = ca_key
        self._kms_provider = kms_provider
        self._signers: dict[str, tuple[K256Key | Ed25519Key, tuple[bytes, ...]]] = {}
        self._secrets = {
            "k256_key": bytearray(k256_key),
            "env_crypt_key": bytearray(env_crypt_key),
            "disk_crypt_key": bytearray(disk_crypt_key),
        }

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, follow: bool = True) -> "AppKeys":
        """Read a key file, `.appkeys.json`.

        Args:
            path: Path of a regular file, or of an inherited pipe such as `/dev/stdin`.
            follow: Whether the file may be a symbolic link; pass False for a path in a directory
                that other users can write to.

        Raises:
            ConfigError: If the file cannot be read or is invalid. The message names the file and
                the JSON key, and never contains a value.
        """
        try:
            data = read_regular(path, LARGEST + 1, follow=follow)  # detects files over the limit
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            problem = getattr(error, "strerror", None) or error
            raise ConfigError(f"{path}: {problem}", reason="unreadable") from error
        try:
            return cls.from_json(data, name=str(path))
        finally:
            wipe(data)

    @classmethod
    def from_json(cls, text: str | bytes, *, name: str = "") -> "AppKeys":
        """Parse the text of a key file (bytes: UTF-8); `name` is the file name for errors.

        Raises:
            ConfigError: If the text is invalid. The message names the file and the JSON key, and
                never contains a value.
        """
        return read_app_keys(cls, text, name)

    def to_json(self) -> str:
        """Return the text of the key file, which contains the secrets and cannot be wiped.

        It is compact JSON with its members in the order of dstack's file.

        Raises:
            UsageError: If the AppKeys are closed, or a text has an unpaired surrogate.
        """
        return write_app_keys(
            provider=self.key_provider,
            provider_id=self.key_provider_id,
            kms=self.kms_provider,
            ca_key=self.ca_key,
            texts={
                "disk_crypt_key": self.disk_crypt_key.hex(),
                "env_crypt_key": self.env_crypt_key.hex(),
                "k256_key": self.k256_key.hex(),
                "k256_signature": self.k256_signature.hex(),
                "gateway_app_id": self.gateway_app_id,
                "ca_cert": self.ca_cert,
            },
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the key file, readable by this user only, replacing the file atomically.

        A symbolic link at `path` is replaced, and the file to which it points is unchanged.
        Temporary files of calls that were killed are deleted.

        Raises:
            ConfigError: If the file cannot be written, or would exceed the 1 MiB that `load` reads.
            UsageError: If the AppKeys are closed, or a text has an unpaired surrogate.
        """
        content = self.to_json().encode()
        try:
            if len(content) > LARGEST:
                raise ConfigError(f"{path}: would be over {LARGEST} bytes", reason="too_large")
            remove_abandoned(Path(path))  # those contain keys
            replace_file(Path(path), content, mode=0o600)
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            problem = getattr(error, "strerror", None) or error
            message = f"{path}: cannot be written: {problem}"
            raise ConfigError(message, reason="unwritable") from error
        finally:
            wipe(content)

    @classmethod
    def from_seed(cls, seed: bytes) -> "AppKeys":
        """Derive all keys from a 32-byte seed, as the agent's local key providers do.

        The same seed gives the same keys and the same certificate, byte for byte. Without a KMS,
        `k256_signature` and `env_crypt_key` are empty.

        Raises:
            UsageError: If the seed is not 32 bytes.
        """
        if len(seed) != 32:
            raise UsageError(f"seed: must be 32 bytes, not {len(seed)}", reason="wrong_size")
        root, disk = (
            hkdf.derive_bytes(seed, b"app-k256-key"),
            hkdf.derive_x25519(seed, b"app-disk-key"),
        )
        try:
            ca_key = hkdf.derive_p256(seed, b"app-key")
            return cls(k256_key=root, ca_cert=None, ca_key=ca_key, disk_crypt_key=disk)
        finally:
            wipe(root)
            wipe(disk)

    @classmethod
    def generate(cls, random: Callable[[int], bytes] = os.urandom) -> "AppKeys":
        """Return the keys of a random seed, as `from_seed`.

        `random` returns the given number of bytes.
        """
        return cls.from_seed(random(32))

    @property
    def k256_key(self) -> bytes:
        """The root key: a secp256k1 scalar (32 bytes), and the input key of derivations."""
        return self._secret("k256_key")

    @property
    def env_crypt_key(self) -> bytes:
        """The X25519 secret for encrypted environments, 32 bytes or empty."""
        return self._secret("env_crypt_key")

    @property
    def disk_crypt_key(self) -> bytes:
        """The key of the encrypted disk, 32 bytes or empty."""
        return self._secret("disk_crypt_key")

    @property
    def ca_cert(self) -> str:
        """The certificate of the application's CA, PEM.

        For keys from a seed it is issued on first access, which raises UsageError after `close()`.
        """
        if self._ca_cert is None:
            # Lazy: X.509 is slow to import, and most programs never issue a certificate.
            from attestkit._crypto.x509.app_certificates import certificate_pem, issue_ca

            key = self.ca_key
            assert key is not None
            issued = issue_ca(
                key=key,
                subject="App Root Cert",
                path_length=1,
                not_before=YEAR_1975,  # constant, so that a seed always gives the same certificate
                not_after=END_OF_2049,
            )
            self._ca_cert = certificate_pem(issued)
        return self._ca_cert

    @property
    def ca_key(self) -> P256Key | None:
        """The private key of `ca_cert`; None if the certificate is from a KMS, which keeps it."""
        key = self._ca_key
        self._root_key()  # after the access, see `close`
        return key

    @property
    def kms_provider(self) -> KmsProvider | None:
        """URL and temporary CA of the KMS; None if unknown, or if the keys are not from a KMS.

        The key of the temporary CA is not a secret of the app: the KMS gives it to every client.
        """
        provider = self._kms_provider
        self._root_key()  # after the access, see `close`
        return provider

    @property
    def root_public_key(self) -> bytes:
        """The public key of `k256_key`, compressed SEC1 (33 bytes)."""
        return self._root_key().public_key

    def derive_bytes(self, path: bytes) -> bytes:
        """Derive 32 bytes from the root key by `hkdf.derive_bytes`, without copying the root key.

        `path` is the info of HKDF.

        Raises:
            UsageError: If the AppKeys are closed.
        """
        derived = hkdf.derive_bytes(self._secrets["k256_key"], path)
        self._root_key()  # after the access, see `close`
        return derived

    def derive_v1_bytes(self, domain: str, algorithm: str) -> bytes:
        """Derive the 32 bytes of a key of the agent's API v1, without copying the root key.

        `domain` is the name of the key, and `algorithm` secp256k1 or ed25519.

        Raises:
            UsageError: If `encode_v1_names` rejects domain or algorithm, or the AppKeys are closed.
        """
        derived = hkdf.derive_v1_bytes(self._secrets["k256_key"], domain, algorithm)
        self._root_key()  # after the access, see `close`
        return derived

    def endorse(self, public_key: bytes, purpose: str) -> tuple[bytes, bytes]:
        """Return the signature chain of a derived key: two signatures.

        `public_key` is compressed secp256k1 (33 bytes) or Ed25519 (32 bytes). The first signature
        is the root key's, recoverable (65 bytes), over the Keccak-256 hash of the claim, see
        `v0_claim`; the second is `k256_signature`, empty without a KMS. The root key signs nothing
        but the claims of this method and of `endorse_v1`.

        Raises:
            UsageError: If the purpose has control characters or unpaired surrogates, or the
                AppKeys are closed.
        """
        hkdf.encode_purpose(purpose)
        return self._endorse(v0_claim(public_key, purpose))

    def endorse_v1(self, public_key: bytes, domain: str, algorithm: str) -> tuple[bytes, bytes]:
        """Return the signature chain of a key of the agent's API v1: two signatures, as `endorse`.

        The claim is that of `v1_claim` for the same arguments.

        Raises:
            UsageError: If `encode_v1_names` rejects domain or algorithm, or the AppKeys are closed.
        """
        return self._endorse(v1_claim(public_key, domain, algorithm))

    def _endorse(self, claim: bytes) -> tuple[bytes, bytes]:
        return self._root_key().sign_recoverable(keccak256(claim)), self.k256_signature

    def signer(self, algorithm: str) -> "tuple[K256Key | Ed25519Key, tuple[bytes, ...]]":
        """Return the signing key (path `vms`), and its chain of two signatures.

        `algorithm` is `secp256k1` or `ed25519`. The key is derived once and stored until `close()`.
        This exposes no more secrets, because the root key, from which it is derived, is stored as
        well.

        Raises:
            UsageError: If the AppKeys are closed.
        """
        self._root_key()
        found = self._signers.get(algorithm)
        if found is None:
            from attestkit._crypto.ed25519 import Ed25519Key  # lazy: not every application signs

            secret = self.derive_bytes(_SIGNING_PATH)
            key: K256Key | Ed25519Key
            key = Ed25519Key(secret) if algorithm == "ed25519" else K256Key(secret)
            wipe(secret)
            found = key, self.endorse(key.public_key, _SIGNING_PURPOSE)
            self._signers[algorithm] = found
            if self._root is None:  # closed by another thread, perhaps before the assignment
                self._signers.clear()
                self._root_key()
        return found

    def close(self) -> None:
        """Wipe the secrets. A second call does nothing.

        Calls of other threads at the same time use the correct keys or raise UsageError.
        """
        # First: all methods check it after reading a secret, so none returns a partly wiped one.
        self._root = None
        self._ca_key = None
        self._kms_provider = None
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
            raise UsageError("AppKeys: is closed; load the keys again", reason="closed")
        return root

    def _secret(self, name: str) -> bytes:
        value = bytes(self._secrets[name])
        self._root_key()  # after the access, see `close`
        return value
