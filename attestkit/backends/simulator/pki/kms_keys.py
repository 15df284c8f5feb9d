"""Root keys of a simulated KMS, derived from a seed (kms.md, sections 1.7 and 8.2)."""

from collections.abc import Callable
from typing import Final

from attestkit._crypto.ecdsa import K256_ORDER, P256_ORDER, K256Key, P256Key
from attestkit._crypto.hashes import hkdf_sha256
from attestkit._crypto.zeroize import wipe

CA_LABEL: Final = "p256/root-ca"
K256_LABEL: Final = "k256/root"

_SALT: Final = b"attestkit/sim-kms/v1"
_ORDERS: Final = {"p256": P256_ORDER, "k256": K256_ORDER}


def derive_kms_bytes(seed: bytes, label: str, size: int) -> bytes:
    """Return secret bytes of a KMS; `seed` may be that of a simulated TEE: the salts differ."""
    return hkdf_sha256(seed, label.encode(), size, _SALT)


def make_scalar(stream: Callable[[str, int], bytes], label: str) -> bytes:
    """Return a scalar in 1..n-1 with negligible bias, 32 bytes, from 48 bytes of `stream`."""
    order = _ORDERS[label.partition("/")[0]]
    material = stream(label, 48)
    number = int.from_bytes(material, "big") % (order - 1) + 1
    wipe(material)
    return number.to_bytes(32, "big")


def public_kms_keys(seed: bytes) -> tuple[bytes, bytes]:
    """Return the public keys of the KMS of a seed: CA (SubjectPublicKeyInfo) and secp256k1."""

    def scalar(label: str) -> bytes:
        return make_scalar(lambda name, size: derive_kms_bytes(seed, name, size), label)

    ca = P256Key.from_scalar(scalar(CA_LABEL))
    return ca.spki_der, K256Key(scalar(K256_LABEL)).public_key
