"""Verification of signatures by an application's keys."""

from typing import Final

from attestkit._argument_checks import unsupported_algorithm
from attestkit._crypto.ecdsa import k256_verify
from attestkit._crypto.hashes import sha256
from attestkit.errors import SignatureError

PREHASHED: Final = "secp256k1_prehashed"


def verify_signature(public_key: bytes, signature: bytes, data: bytes, *, algorithm: str) -> None:
    """Verify that `signature` over `data` is valid for `public_key`, which must be trusted.

    Args:
        public_key: Ed25519 (32 bytes), or secp256k1 as SEC1 (33 or 65 bytes).
        signature: 64 bytes; a signature with high s is not valid.
        data: The signed message or digest.
        algorithm: ed25519, secp256k1 (or k256), or secp256k1_prehashed. For secp256k1_prehashed,
            as in the agent's API, `data` is cut to 32 bytes, 16 to 31 bytes are zero-padded on the
            left, and with fewer than 16 bytes no signature is valid.

    Raises:
        SignatureError: If the signature is not valid (`bad_signature`).
        UsageError: If the algorithm is unknown, or key or signature are malformed.
    """
    key_type, message = prepare_message(algorithm, data)
    if key_type == "ed25519":
        from attestkit._crypto.ed25519 import ed25519_verify  # lazy: imports its library

        valid = ed25519_verify(public_key, signature, message)
    else:
        valid = k256_verify(public_key, signature, message[:32].rjust(32, b"\0"))
        valid = valid and len(message) >= 16
    if not valid:
        text = f"{algorithm} signature: not valid for this data and public key"
        raise SignatureError(text, reason="bad_signature")


def prepare_message(algorithm: str, data: bytes) -> tuple[str, bytes]:
    """Return the key type of an algorithm, and the message or digest that it signs.

    Raises:
        UsageError: If the algorithm is unknown.
    """
    if algorithm == "ed25519":
        return "ed25519", data
    if algorithm in {"secp256k1", "k256"}:
        return "secp256k1", sha256(data)
    if algorithm == PREHASHED:
        return "secp256k1", data
    raise unsupported_algorithm(algorithm, ("ed25519", "secp256k1", "k256", PREHASHED))
