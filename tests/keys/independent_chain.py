"""A second verifier of signature chains, written from the specification without attestkit.

coincurve recovers keys, OpenSSL verifies the signatures with them, and the hash is pycryptodome's.
"""

from collections.abc import Sequence

from coincurve import PrivateKey, PublicKey
from Crypto.Hash import keccak
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
PREHASHED = ec.ECDSA(Prehashed(SHA256()))  # a digest of 32 bytes; its function does not matter
Binding = str | tuple[str, str]
"""The purpose of a v0 chain, or domain and algorithm of a v1 chain."""


def keccak256(data: bytes) -> bytes:
    """Return the hash that root keys sign."""
    return keccak.new(data=data, digest_bits=256).digest()


def prefixed(*fields: bytes) -> bytes:
    """Concatenate fields behind their lengths of 4 bytes."""
    return b"".join(len(field).to_bytes(4, "big") + field for field in fields)


def claim(public_key: bytes, binding: Binding) -> bytes:
    """Return the message that an app's root key signs about a derived key."""
    if isinstance(binding, str):
        return binding.encode() + b":" + public_key.hex().encode()
    domain, algorithm = binding
    tag = b"dstack-guest-v1-key-claim"
    return prefixed(tag, algorithm.encode(), domain.encode(), public_key)


def kms_message(app_id: bytes, root: bytes) -> bytes:
    """Return the message that a KMS signs about an app's root key."""
    return b"dstack-kms-issued:" + app_id + root


def sign(secret: PrivateKey, message: bytes) -> bytes:
    """Return a recoverable signature with low s."""
    signature: bytes = secret.sign_recoverable(keccak256(message), hasher=None)
    return signature


def recover(link: bytes, message: bytes) -> bytes | None:
    """Return the compressed key of a link by the rules of the specification, or None."""
    r, s = int.from_bytes(link[:32], "big"), int.from_bytes(link[32:64], "big")
    if len(link) != 65 or link[64] > 3 or not 0 < r < ORDER or not 0 < s <= ORDER // 2:
        return None
    try:
        key = PublicKey.from_signature_and_message(link, keccak256(message), hasher=None)
    except ValueError:
        return None
    compressed: bytes = key.format()
    openssl = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256K1(), compressed)
    openssl.verify(encode_dss_signature(r, s), keccak256(message), PREHASHED)
    return compressed


def is_issued(
    public_key: bytes, chain: Sequence[bytes], binding: Binding, app_id: bytes, kms_root: bytes
) -> bool:
    """Return whether a chain leads to the root key of the KMS."""
    sizes = {"secp256k1": (33,), "ed25519": (32,)}
    allowed = (32, 33) if isinstance(binding, str) else sizes.get(binding[1], ())
    if len(chain) != 2 or len(public_key) not in allowed or len(app_id) != 20:
        return False
    app_root = recover(chain[0], claim(public_key, binding))
    return app_root is not None and recover(chain[1], kms_message(app_id, app_root)) == kms_root


def high_s(link: bytes) -> bytes:
    """Return the other signature of the same key over the same message."""
    s = ORDER - int.from_bytes(link[32:64], "big")
    return link[:32] + s.to_bytes(32, "big") + bytes([link[64] ^ 1])
