"""Checks of signatures and of signature chains; none of them needs a secret."""

from typing import Final

from attestkit._crypto.ecdsa import k256_recover, k256_verify
from attestkit._crypto.hashes import keccak256, sha256
from attestkit.errors import UsageError
from attestkit.keys.hkdf import utf8

__all__ = ["PREHASHED", "recover_issuers", "recover_root", "signed_message", "verify_signature"]

PREHASHED: Final = "secp256k1_prehashed"


def verify_signature(algorithm: str, data: bytes, signature: bytes, public_key: bytes) -> bool:
    """Tell whether `signature` over `data` holds; the key is the caller's to trust.

    Key and signature are parsed before anything is checked, so malformed ones are always an error.

    Args:
        algorithm: ed25519, secp256k1 (or k256), or secp256k1_prehashed. With the last, as in the
            agent's API, `data` is cut to 32 bytes, 16 to 31 bytes get zeros on the left, and
            fewer never hold.
        data: what was signed.
        signature: 64 bytes; a high s never holds.
        public_key: 32 bytes of Ed25519; 33 or 65 of SEC1 for secp256k1.

    Raises:
        UsageError: another algorithm, or the key or the signature is malformed.
    """
    kind, message = signed_message(algorithm, data)
    if kind == "ed25519":
        from attestkit._crypto.ed25519 import ed25519_verify  # late: loads its library

        return ed25519_verify(public_key, signature, message)
    valid = k256_verify(public_key, signature, message[:32].rjust(32, b"\0"))
    return valid and len(message) >= 16


def recover_root(public_key: bytes, purpose: str, signature: bytes) -> bytes:
    """Return the key (33 bytes) that made the first signature of a derived key's chain.

    This proves nothing until it is compared with the application's root key that one trusts; where
    a KMS vouches for that, `recover_issuers` leads to the KMS's.

    Args:
        public_key: the derived public key.
        purpose: the purpose that it was derived with.
        signature: the chain's first, recoverable, 65 bytes.

    Raises:
        SignatureError: the signature is malformed, or no key can have made it.
    """
    text = utf8("purpose", purpose) + b":" + public_key.hex().encode()
    return k256_recover(signature, keccak256(text))


def recover_issuers(
    public_key: bytes, purpose: str, chain: tuple[bytes, bytes], app_id: bytes
) -> tuple[bytes, bytes]:
    """Return the keys (33 bytes each) that made a derived key's chain: application root, then KMS.

    This proves nothing until the second is compared with the KMS key that one trusts.

    Args:
        public_key: the derived public key.
        purpose: the purpose that it was derived with.
        chain: the two recoverable signatures, 65 bytes each.
        app_id: the application's 20 bytes.

    Raises:
        SignatureError: a signature is malformed, or no key can have made it.
    """
    root = recover_root(public_key, purpose, chain[0])
    return root, k256_recover(chain[1], keccak256(b"dstack-kms-issued:" + app_id + root))


def signed_message(algorithm: str, data: bytes) -> tuple[str, bytes]:
    """Return the kind of key that signs, and what it signs."""
    if algorithm == "ed25519":
        return "ed25519", data
    if algorithm in {"secp256k1", "k256"}:
        return "secp256k1", sha256(data)
    if algorithm == PREHASHED:
        return "secp256k1", data
    raise UsageError("Unsupported algorithm")
