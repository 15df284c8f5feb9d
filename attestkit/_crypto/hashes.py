"""Hashes, by their names in the dstack guest agent API, and HKDF."""

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from attestkit.errors import UsageError

_HKDF_LIMIT: Final = 255 * 32  # RFC 5869, 2.3


def sha256(data: bytes) -> bytes:
    """Return the 32-byte SHA-256 of `data`."""
    return hashlib.sha256(data).digest()


def sha384(data: bytes) -> bytes:
    """Return the 48-byte SHA-384 of `data`."""
    return hashlib.sha384(data).digest()


def sha512(data: bytes) -> bytes:
    """Return the 64-byte SHA-512 of `data`."""
    return hashlib.sha512(data).digest()


def keccak256(data: bytes) -> bytes:
    """Return the 32-byte Keccak-256 of `data` (Ethereum's hash; its padding differs from SHA-3)."""
    return _keccak(data, 32)


def _keccak(data: bytes, size: int) -> bytes:
    from attestkit._native import keccak  # lazy: the core refuses an invalid ATTESTKIT_CPU

    return keccak(data, size)


_DIGESTS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "sha256": sha256,
    "sha384": sha384,
    "sha512": sha512,
    "sha3-256": lambda data: hashlib.sha3_256(data).digest(),
    "sha3-384": lambda data: hashlib.sha3_384(data).digest(),
    "sha3-512": lambda data: hashlib.sha3_512(data).digest(),
    "keccak256": keccak256,
    "keccak384": lambda data: _keccak(data, 48),
    "keccak512": lambda data: _keccak(data, 64),
}

ALGORITHMS: Final = tuple(_DIGESTS)


def digest(name: str, data: bytes) -> bytes:
    """Return the digest of `data` by the algorithm `name`, one of `ALGORITHMS`.

    Raises:
        UsageError: If the algorithm is unknown.
    """
    algorithm = _DIGESTS.get(name)
    if algorithm is None:
        raise UsageError("invalid hash algorithm", reason="unsupported_algorithm")
    return algorithm(data)


def hkdf_sha256(ikm: bytes | bytearray, info: bytes, length: int, salt: bytes) -> bytes:
    """Return `length` bytes of HKDF with SHA-256 (RFC 5869).

    Args:
        ikm: Input keying material, the secret.
        info: Bytes that separate this use of the secret from others; may be empty.
        length: Size of the result in bytes.
        salt: Salt of the first step; empty is the same as 32 zero bytes.

    Raises:
        UsageError: If `length` is not 0 to 8160.
    """
    from attestkit._crypto.zeroize import wipe  # lazy: loads cryptography

    key = hmac.digest(salt, ikm, "sha256")
    try:
        return hkdf_expand_sha256(key, info, length)
    finally:
        wipe(key)  # the pseudorandom key, from which every output can be derived


def hkdf_expand_sha256(key: bytes, info: bytes, length: int) -> bytes:
    """Return `length` bytes of HKDF-Expand with SHA-256, the second step of HKDF (RFC 5869, 2.3).

    Args:
        key: Pseudorandom key, the result of the first step.
        info: Bytes that separate this use of the key from others; may be empty.
        length: Size of the result in bytes.

    Raises:
        UsageError: If `length` is not 0 to 8160.
    """
    if not 0 <= length <= _HKDF_LIMIT:
        message = f"HKDF length: must be 0 to {_HKDF_LIMIT}, not {length}"
        raise UsageError(message, reason="out_of_range")
    block = hmac.digest(key, info + b"\x01", "sha256")
    blocks = [block]
    for number in range(2, (length + 31) // 32 + 1):
        blocks.append(hmac.digest(key, blocks[-1] + info + bytes([number]), "sha256"))
    return block[:length] if length <= 32 else b"".join(blocks)[:length]
