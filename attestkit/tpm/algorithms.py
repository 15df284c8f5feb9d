"""Algorithm identifiers of the TCG Algorithm Registry, and hashes by their names."""

import hashlib
from collections.abc import Callable
from typing import Final

from attestkit._crypto.hashes import sha256, sha384, sha512
from attestkit.errors import UsageError

ALG_RSA: Final = 0x0001
ALG_SHA1: Final = 0x0004
ALG_HMAC: Final = 0x0005
ALG_AES: Final = 0x0006
ALG_SHA256: Final = 0x000B
ALG_SHA384: Final = 0x000C
ALG_SHA512: Final = 0x000D
ALG_NULL: Final = 0x0010
ALG_RSASSA: Final = 0x0014
ALG_RSAES: Final = 0x0015
ALG_RSAPSS: Final = 0x0016
ALG_OAEP: Final = 0x0017
ALG_ECDSA: Final = 0x0018
ALG_ECC: Final = 0x0023
ALG_CFB: Final = 0x0043

HASH_NAMES: Final = {
    ALG_SHA1: "sha1",
    ALG_SHA256: "sha256",
    ALG_SHA384: "sha384",
    ALG_SHA512: "sha512",
}
HASH_IDS: Final = {name: number for number, name in HASH_NAMES.items()}
HASH_SIZES: Final = {"sha1": 20, "sha256": 32, "sha384": 48, "sha512": 64}
"""Bytes of a digest by the name of the hash, which is also that of a PCR bank."""

LARGEST_DIGEST: Final = 64

SIGNATURE_NAMES: Final = {ALG_RSASSA: "rsassa", ALG_RSAPSS: "rsapss", ALG_ECDSA: "ecdsa"}
SIGNATURE_IDS: Final = {name: number for number, name in SIGNATURE_NAMES.items()}

CURVE_NAMES: Final = {0x0003: "p256", 0x0004: "p384"}
CURVE_IDS: Final = {name: number for number, name in CURVE_NAMES.items()}
CURVE_SIZES: Final = {"p256": 32, "p384": 48}
"""Bytes of a coordinate, and of r and s of a signature."""


def hash_size(name: str) -> int:
    """Return the size in bytes of a digest of the hash `name`, such as "sha256".

    Raises:
        UsageError: If the hash is unknown.
    """
    size = HASH_SIZES.get(name)
    if size is None:
        message = f"hash: {name!r} is not one of {', '.join(HASH_SIZES)}"
        raise UsageError(message, reason="unsupported_algorithm")
    return size


def compute_digest(name: str, data: bytes) -> bytes:
    """Return the digest of `data` by the hash `name`, such as "sha256".

    Raises:
        UsageError: If the hash is unknown.
    """
    return hash_function(name)(data)


def hash_function(name: str) -> Callable[[bytes], bytes]:
    """Return the function that computes digests by the hash `name`, such as "sha256".

    Raises:
        UsageError: If the hash is unknown.
    """
    hash_size(name)  # raises for an unknown hash
    return _HASHES[name]


def _sha1(data: bytes) -> bytes:
    # It only reproduces values of old banks and keys; no signature over it is accepted.
    return hashlib.sha1(data, usedforsecurity=False).digest()


# Faster than `hashlib.new`.
_HASHES: Final[dict[str, Callable[[bytes], bytes]]] = {
    "sha1": _sha1,
    "sha256": sha256,
    "sha384": sha384,
    "sha512": sha512,
}
