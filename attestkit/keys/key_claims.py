"""Claims by which a root key certifies a key, key epochs, and signatures by an application's keys.

Each claim is signed with secp256k1 over its Keccak-256 hash. No claim of one kind equals one of
another kind: a claim of the agent's API v0 ends in 64 or 66 hex digits, where one of its API v1 has
zero bytes of its last length.
"""

from typing import Final

from attestkit._argument_checks import require_bytes, require_size, unsupported_algorithm
from attestkit._crypto.ecdsa import k256_verify
from attestkit._crypto.hashes import sha256
from attestkit._sanitize import shown
from attestkit.errors import SignatureError, UsageError
from attestkit.keys.hkdf import encode_v1_names, length_prefixed, utf8

_V1_TAG: Final = b"dstack-guest-v1-key-claim"
_KMS_TAG: Final = b"dstack-kms-issued:"


def v0_claim(public_key: bytes, purpose: str) -> bytes:
    """Return the claim of GetKey of API v0: purpose, colon, and public key in lower-case hex.

    `public_key` is compressed secp256k1 (33 bytes) or Ed25519 (32 bytes).

    Raises:
        UsageError: If the purpose is not `str` or has unpaired surrogates.
    """
    return utf8("purpose", purpose) + b":" + public_key.hex().encode()


def v1_claim(public_key: bytes, domain: str, algorithm: str) -> bytes:
    """Return the claim of GetKey of `dstack.guest.v1`: a tag, algorithm, domain and public key.

    Each is behind its length. `public_key` is compressed secp256k1 (33 bytes) or Ed25519 (32
    bytes); `domain` is the name of the key.

    Raises:
        UsageError: If `encode_v1_names` rejects domain or algorithm.
    """
    return length_prefixed(_V1_TAG, *encode_v1_names(domain, algorithm), public_key)


def kms_claim(app_id: bytes, app_root: bytes) -> bytes:
    """Return the claim of a KMS that this is the root key (33 bytes, compressed) of an app.

    It is the concatenation of a tag, the app id (20 bytes) and the key.

    Raises:
        UsageError: If the app id does not have 20 bytes.
    """
    check_app_id(app_id)
    return _KMS_TAG + app_id + app_root


def check_app_id(app_id: bytes) -> None:
    """Raise UsageError unless an app id has 20 bytes, because claims do not contain its length."""
    require_bytes("app_id", app_id)
    require_size("app_id", app_id, 20)


def require_key_epoch_0(epoch: object) -> None:
    """Raise UsageError (reason `key_epoch`) unless the epoch in a request for a key is 0 or None.

    Keys of other epochs cannot be derived here, and ignoring the number would return a wrong key.
    """
    if epoch is None or (type(epoch) is int and epoch == 0):
        return
    number = shown(epoch) if type(epoch) is int else f"of type {type(epoch).__name__}"
    raise UsageError(f"key epoch {number} is not available", reason="key_epoch")


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
        SignatureError: If the signature is not valid (reason `bad_signature`).
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
        text = f"{algorithm} signature: must be valid for this data and public key"
        raise SignatureError(text, reason="bad_signature")


def prepare_message(algorithm: str, data: bytes) -> tuple[str, bytes]:
    """Return the key type of an algorithm (secp256k1 or ed25519), and the bytes to sign.

    These are `data`, or its SHA-256 for secp256k1 and k256.

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
