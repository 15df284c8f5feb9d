"""Pins of a KMS: the public root keys by which a client trusts it, in a file or as a value."""

import hmac
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from attestkit._argument_checks import require_bytes, wrong_type
from attestkit._crypto.ecdsa import P256_SPKI_HEAD, P256PublicKey
from attestkit._crypto.k256_agreement import require_k256_public_key
from attestkit._formats.strict_json import config_reason, decode_strictly, from_hex, wrong_json_type
from attestkit._sanitize import key as shown_key
from attestkit._system.atomic_file import load_document, save_document
from attestkit.errors import ConfigError, FormatError, SignatureError, UsageError
from attestkit.simulated_roots import SimulatedRoots

if TYPE_CHECKING:
    from attestkit._outcomes.reasons import ConfigReason

MAX_ROOT_FILE: Final = 4096
"""Maximum size of a file with a `KmsRoot` in bytes; a real one has about 300."""

_SPKI_SIZE: Final = 91
_POINT_SIZE: Final = 33
_CA, _K256 = "ca_spki", "k256_public_key"


@dataclass(frozen=True, slots=True, eq=False)
class KmsRoot:
    """The public root keys of a KMS, which a client pins; compared in constant time.

    Their source must be neither the guest nor the KMS, such as the KMS's contract. Certificates are
    renewed, so the keys are pinned.

    Attributes:
        ca_spki: SubjectPublicKeyInfo of the root CA in DER: a P-256 key, 91 bytes. Its hex is the
            id of the key provider in events and in app-compose.
        k256_public_key: The secp256k1 root key, compressed, 33 bytes. None if it is not known: then
            a KMS with the right CA may name any key.
    """

    ca_spki: bytes
    k256_public_key: bytes | None = None

    def __post_init__(self) -> None:
        """Check both keys.

        Raises:
            UsageError: If a key is not `bytes`, has a wrong size or is not a point of its curve.
        """
        require_bytes(_CA, self.ca_spki, _SPKI_SIZE)
        point = self.ca_spki.removeprefix(P256_SPKI_HEAD)
        try:
            P256PublicKey(point)
        except SignatureError as error:
            message = f"{_CA}: must be the SubjectPublicKeyInfo of a P-256 key"
            raise UsageError(message, reason="invalid_key") from error
        if self.k256_public_key is not None:
            require_bytes(_K256, self.k256_public_key, _POINT_SIZE)
            require_k256_public_key(self.k256_public_key)

    @property
    def provider_id(self) -> str:
        """Id of the key provider: `ca_spki` in hex."""
        return self.ca_spki.hex()

    @classmethod
    def from_certificate(
        cls, certificate: bytes | str, k256_public_key: bytes | None = None
    ) -> "KmsRoot":
        """Create a pin from the root CA's certificate, in DER or PEM, which must be trusted.

        `k256_public_key` is the secp256k1 root key, 33 bytes; None accepts any.

        Raises:
            FormatError: If the certificate is malformed.
            UsageError: If its key is not a P-256 key, or `k256_public_key` is not valid.
        """
        # Lazy: X.509 is slow to import.
        from attestkit._crypto.x509.app_certificates import read_certificate

        return cls(read_certificate(certificate).spki_der, k256_public_key)

    @classmethod
    def from_json(cls, text: str | bytes) -> "KmsRoot":
        """Decode the JSON object of a pin: `ca_spki` and, optionally, `k256_public_key`, in hex.

        Raises:
            ConfigError: If the text is malformed or over 4096 bytes, a key is unknown or missing,
                or a value is not a valid public key.
        """
        if len(text) > MAX_ROOT_FILE:
            raise ConfigError(f"KMS root: over {MAX_ROOT_FILE} bytes", reason="too_large")
        try:
            fields = decode_strictly(text, known_keys={_CA, _K256})
        except FormatError as error:
            raise ConfigError(f"KMS root: {error}", reason=config_reason(error)) from error
        if not isinstance(fields, dict):
            problem = wrong_json_type("KMS root", "a JSON object", fields)
            raise ConfigError(str(problem), reason="wrong_type")
        for name in fields:
            if name not in {_CA, _K256}:
                message = f"KMS root: {shown_key(name)}: unknown key"
                raise ConfigError(message, reason="unknown_key")
        if _CA not in fields:
            raise ConfigError(f"KMS root: {_CA}: missing", reason="missing")
        given = {name: value for name, value in fields.items() if name == _CA or value is not None}
        try:
            return cls(**{name: from_hex(value, name) for name, value in given.items()})
        except FormatError as error:
            raise ConfigError(f"KMS root: {error}", reason=config_reason(error)) from error
        except UsageError as error:
            wrong_size = error.reason == "wrong_size"
            reason: ConfigReason = "wrong_size" if wrong_size else "wrong_value"
            raise ConfigError(f"KMS root: {error}", reason=reason) from error

    def to_json(self) -> str:
        """Return the JSON object that `from_json` decodes, one member per line."""
        fields = {_CA: self.ca_spki.hex()}
        if self.k256_public_key is not None:
            fields[_K256] = self.k256_public_key.hex()
        return json.dumps(fields, indent=1) + "\n"

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "KmsRoot":
        """Read a pin from the file `path` with the JSON of `to_json`.

        Raises:
            ConfigError: If the file cannot be read, or `from_json` rejects its content. The message
                names the file.
        """
        data = load_document(path, MAX_ROOT_FILE, bytes, ConfigError)
        try:
            return cls.from_json(data)
        except ConfigError as error:
            remedy = f'must be {{"{_CA}": "<hex>", "{_K256}": "<hex>"}}, as KmsRoot.save writes it'
            raise ConfigError(f"{path}: {error}; {remedy}", reason=error.reason) from error

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON of `to_json` to the file `path`, readable by all, replacing it atomically.

        Raises:
            ConfigError: If the file cannot be written.
        """
        save_document(path, self.to_json().encode(), ConfigError, mode=0o644)

    def is_of_ca(self, spki: bytes) -> bool:
        """Return, in constant time, whether `spki` (in DER) is the key of this root's CA."""
        return hmac.compare_digest(self.ca_spki, spki)

    def may_be_k256(self, public_key: bytes) -> bool:
        """Return, in constant time, whether `public_key` is the pinned one; True without a pin."""
        return self.k256_public_key is None or hmac.compare_digest(self.k256_public_key, public_key)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, KmsRoot):
            return NotImplemented
        same = (self.k256_public_key is None) is (other.k256_public_key is None)
        same_k256 = hmac.compare_digest(self.k256_public_key or b"", other.k256_public_key or b"")
        return hmac.compare_digest(self.ca_spki, other.ca_spki) & same_k256 & same

    def __hash__(self) -> int:
        return hash((self.ca_spki, self.k256_public_key))

    def __repr__(self) -> str:
        k256 = "None" if self.k256_public_key is None else self.k256_public_key.hex()
        return f"KmsRoot(ca_spki={self.ca_spki.hex()}, k256_public_key={k256})"


def require_roots(roots: object) -> tuple[KmsRoot, ...]:
    """Return `roots` as a tuple; for `SimulatedRoots`, the root of its KMS.

    Raises:
        UsageError: If `roots` is not a collection of KmsRoot, is empty, or is SimulatedRoots
            without a KMS.
    """
    if isinstance(roots, SimulatedRoots):
        if roots.kms is None:
            message = "roots: must have keys of a KMS; pass those of a SimulatedKms"
            raise UsageError(message, reason="not_applicable")
        return (KmsRoot(*roots.kms),)
    if isinstance(roots, (KmsRoot, str, bytes)) or not isinstance(roots, Iterable):
        raise wrong_type("roots", "a collection of KmsRoot", roots)
    found = tuple(roots)
    for root in found:
        if not isinstance(root, KmsRoot):
            raise wrong_type("roots", "a collection of KmsRoot", root)
    if not found:
        message = "roots: must not be empty; pass the KmsRoot of each trusted KMS"
        raise UsageError(message, reason="missing")
    return found


def find_root(roots: Iterable[KmsRoot], spki: bytes) -> tuple[KmsRoot, ...]:
    """Return the roots whose `ca_spki` is `spki`; compare all of them, in constant time."""
    return tuple([root for root in roots if root.is_of_ca(spki)])
