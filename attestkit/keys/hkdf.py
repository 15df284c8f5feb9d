"""Key derivation with HKDF-SHA256 (dstack guest agent API, v0 and v1)."""

import re
from typing import Final

from attestkit._argument_checks import unsupported_algorithm, wrong_type
from attestkit._argument_checks import utf8 as check_utf8
from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit._crypto.zeroize import wipe
from attestkit._sanitize import key as shorten
from attestkit.errors import UsageError

_SALT: Final = b"RATLS"
_V1_SALT: Final = b"dstack-guest-v1"
_V1_TAG: Final = b"dstack-guest-v1-key"
_V1_ALGORITHMS: Final = ("secp256k1", "ed25519")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # category Cc of Unicode
_SEPARATED: Final = {
    "secp256k1": "secp256k1",
    "k256": "secp256k1",
    "ed25519": "ed25519",
    "p256": "p256",
    "x25519": "x25519",
}


def derive_bytes(root: bytes | bytearray, *parts: bytes, length: int = 32) -> bytes:
    """Derive `length` bytes (0 to 8160) from `root` with HKDF-SHA256 and the salt `RATLS`.

    The parts are concatenated without separator: `b"ab", b"c"` and `b"a", b"bc"` are equal.

    Raises:
        UsageError: If `length` is not 0 to 8160.
    """
    return hkdf_sha256(root, b"".join(parts), length, _SALT)


def derive_v1_bytes(root: bytes | bytearray, domain: str, algorithm: str) -> bytes:
    """Derive the 32 bytes of a key of the agent's API v1 (`dstack.guest.v1`) from `root`.

    `domain` is the name of the key, and `algorithm` secp256k1 or ed25519. A salt other than that of
    `derive_bytes` makes these keys independent of all keys of API v0.

    Raises:
        UsageError: If `encode_v1_names` rejects domain or algorithm.
    """
    info = length_prefixed(_V1_TAG, *encode_v1_names(domain, algorithm))
    return hkdf_sha256(root, info, 32, _V1_SALT)


def encode_v1_names(domain: str, algorithm: str) -> tuple[bytes, bytes]:
    """Return algorithm and domain in UTF-8, in the order of derivation, for a key of API v1.

    The domain, the name of the key, is any text, because its length precedes it. Unicode is not
    normalized.

    Raises:
        UsageError: If the algorithm is not `secp256k1` or `ed25519` (API v1 has no default and no
            aliases), or the domain is not `str` or has unpaired surrogates.
    """
    encoded = utf8("algorithm", algorithm)
    if not algorithm:
        raise UsageError("algorithm is required, use `secp256k1` or `ed25519`", reason="missing")
    if algorithm not in _V1_ALGORITHMS:
        text = f"unsupported algorithm `{shorten(algorithm)}`, use `secp256k1` or `ed25519`"
        raise UsageError(text, reason="unsupported_algorithm")
    return encoded, utf8("domain", domain)


def length_prefixed(*fields: bytes) -> bytes:
    """Concatenate fields, each behind its length in 4 bytes, big-endian."""
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def derive_p256(root: bytes, *parts: bytes) -> P256Key:
    """Derive the P-256 key whose scalar is `derive_bytes(root, *parts)`.

    Raises:
        UsageError: If the scalar is 0 or not below the order (probability about 2**-32).
    """
    scalar = derive_bytes(root, *parts)
    try:
        return P256Key.from_scalar(scalar)
    finally:
        wipe(scalar)


def derive_x25519(root: bytes, *parts: bytes) -> bytes:
    """Derive an X25519 secret (32 bytes, not clamped) as a dstack KMS does.

    It is the SHA-256 of the PKCS#8 DER of `derive_p256(root, *parts)`.

    Raises:
        UsageError: As `derive_p256`.
    """
    der = derive_p256(root, *parts).pkcs8_der
    secret = sha256(der)
    wipe(der)
    return secret


def separated_path(path: str, algorithm: str) -> str:
    """Return the path with the algorithm as a prefix: `attestkit/v1/<algorithm>/<path>`.

    Without the prefix, all algorithms derive the same 32 bytes from a path, and a flaw in the use
    of one key can reveal the other. With separated paths, no two algorithms share key material. The
    algorithm in the prefix is `secp256k1` (also for `k256`), `ed25519`, `p256` or `x25519`.

    Raises:
        UsageError: If the algorithm is unknown, or the path is not `str` or has unpaired
            surrogates.
    """
    utf8("path", path)  # otherwise None and "None" would be one path
    utf8("algorithm", algorithm)
    if algorithm not in _SEPARATED:
        raise unsupported_algorithm(algorithm, _SEPARATED)
    return f"attestkit/v1/{_SEPARATED[algorithm]}/{path}"


def encode_purpose(purpose: str) -> bytes:
    """Encode the purpose of a key as UTF-8.

    The root key signs it. Without control characters it cannot begin like the messages of other
    protocols for the same kind of key: 0x19 begins a signed message of Ethereum (EIP-191, EIP-712),
    1 to 4 a typed transaction (EIP-2718).

    Raises:
        UsageError: If it is not `str`, or has control characters or unpaired surrogates.
    """
    encoded = utf8("purpose", purpose)
    if (found := _CONTROL.search(purpose)) is not None:
        place = f"U+{ord(found[0]):04X} at character {found.start()}"
        message = f"purpose: control character {place}; use printable text"
        raise UsageError(message, reason="wrong_value")
    return encoded


def utf8(what: str, text: str) -> bytes:
    """Encode `text` as UTF-8.

    Raises:
        UsageError: If `text` is not `str` or has unpaired surrogates; the message begins with
            `what`.
    """
    if not isinstance(text, str):
        raise wrong_type(what, "text", text)
    return check_utf8(text, what, UsageError)
