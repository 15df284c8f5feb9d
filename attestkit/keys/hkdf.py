"""From a root to keys: HKDF-SHA256, whose info is the path (dstack guest agent API)."""

from typing import Final

from attestkit._crypto.ecdsa import P256Key
from attestkit._crypto.hashes import hkdf_sha256, sha256
from attestkit._crypto.zeroize import wipe
from attestkit.errors import UsageError

__all__ = ["derive_bytes", "derive_p256", "derive_x25519", "separated_path", "utf8"]

_SALT: Final = b"RATLS"
_SEPARATED: Final = {
    "secp256k1": "secp256k1",
    "k256": "secp256k1",
    "ed25519": "ed25519",
    "p256": "p256",
    "x25519": "x25519",
}


def derive_bytes(root: bytes | bytearray, *parts: bytes, length: int = 32) -> bytes:
    """Return `length` bytes (0 to 8160) of HKDF-SHA256 over `root` with the salt `RATLS`.

    The parts are joined without a border, so `b"ab", b"c"` and `b"a", b"bc"` are the same.
    """
    return hkdf_sha256(root, b"".join(parts), length, _SALT)


def derive_p256(root: bytes, *parts: bytes) -> P256Key:
    """Return the P-256 key whose scalar is `derive_bytes(root, *parts)`.

    Raises:
        UsageError: the scalar is 0 or not under the order, which chance does not bring about.
    """
    scalar = derive_bytes(root, *parts)
    try:
        return P256Key.from_scalar(scalar)
    finally:
        wipe(scalar)


def derive_x25519(root: bytes, *parts: bytes) -> bytes:
    """Return the X25519 secret (32 bytes, not clamped) that a key service derives from P-256.

    It is the SHA-256 of the whole PKCS#8 DER of `derive_p256(root, *parts)`.
    """
    der = derive_p256(root, *parts).pkcs8_der
    secret = sha256(der)
    wipe(der)
    return secret


def separated_path(path: str, algorithm: str) -> str:
    """Return the path that has `algorithm` bound into it: `attestkit/v1/<algorithm>/<path>`.

    Under one path all algorithms derive the same 32 bytes, and a flaw in the use of one key then
    breaks the other. Under separated paths no two algorithms share bytes. The name written is
    `secp256k1` (also for `k256`), `ed25519`, `p256` or `x25519`, none of which has a slash.

    Raises:
        UsageError: another algorithm.
    """
    if algorithm not in _SEPARATED:
        raise UsageError("Unsupported algorithm")
    return f"attestkit/v1/{_SEPARATED[algorithm]}/{path}"


def utf8(what: str, text: str) -> bytes:
    """Return `text` in UTF-8; the UsageError over what is no Unicode text calls it `what`."""
    if not isinstance(text, str):
        raise UsageError(f"{what} is text, not {type(text).__name__}")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{what} is not Unicode text: it has half a surrogate pair") from error
