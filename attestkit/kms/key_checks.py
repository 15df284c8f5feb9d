"""Keys that a KMS released, and their checks before a guest uses them (kms.md, 1.4.3, 5)."""

import hmac
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

from attestkit._crypto.ecdsa import k256_public_key
from attestkit._crypto.x509.app_certificates import Certificate
from attestkit.errors import FormatError, KmsError, SignatureError, UsageError
from attestkit.keys import AppKeys
from attestkit.keys.key_chain import recover_kms_root
from attestkit.kms.answers import ReceivedKeys
from attestkit.kms.https_call import read_only_certificate
from attestkit.kms.root import KmsRoot

if TYPE_CHECKING:
    from attestkit.verifier import AttestationResult

_SIZES: Final = (
    ("disk_crypt_key", (32,)),
    ("env_crypt_key", (32,)),
    ("k256_key", (32,)),
    ("k256_signature", (65,)),
    ("os_image_hash", (0, 32)),
)


class FetchedKeys(NamedTuple):
    """Keys of a KMS that passed all checks."""

    app_keys: AppKeys
    os_image_hash: bytes  # payload of the event `os-image-hash`; 32 bytes or empty
    root: KmsRoot  # both root keys of the KMS
    url: str  # base URL that released them
    evidence: "AttestationResult | None"  # of the KMS; None without a verifier, or if kept
    not_proven: tuple[str, ...]
    """`kms_root` if the KMS was trusted on first use, `kms_k256_root` if no k256 key is pinned."""
    is_kept: bool = False  # from the key file; the KMS was not asked


def check_received_keys(
    keys: ReceivedKeys,
    *,
    app_id: bytes,
    root: Certificate,
    roots: Sequence[KmsRoot],
    image_hash: bytes,
) -> bytes:
    """Check released keys; return the secp256k1 root key of the KMS that signed them.

    Args:
        keys: The answer to GetAppKey.
        app_id: Id of this app, 20 bytes.
        root: Certificate of the root CA in the answer to GetTempCaCert.
        roots: The pinned roots whose CA is that of this KMS; they differ in the secp256k1 key.
        image_hash: Hash of the OS image in this VM's configuration; empty if it has none.

    Raises:
        KmsError: If a length is wrong (`wrong_size`), the app's root key is not a scalar
            (`invalid_key`), its signature is not by a pinned key for this app (`bad_signature`),
            the certificate is of another root (`wrong_root`) or malformed (`malformed`), or the
            image is not that of the VM configuration (`wrong_image`).
    """
    for name, sizes in _SIZES:
        if (size := len(getattr(keys, name))) not in sizes:
            message = f"{name}: must have {sizes[-1]} bytes, not {size}"
            raise KmsError(message, reason="wrong_size")
    k256_root = _check_signature(keys, app_id, roots)
    try:
        spki = _root_key(keys.ca_cert, root)
    except FormatError as error:
        raise KmsError(f"ca_cert: {error.message}", reason="malformed") from error
    if not all(root.is_of_ca(spki) for root in roots):
        message = (
            "ca_cert: its key is not that of the root that certifies the server; use none of the "
            "answers of this KMS, and ask its owner"
        )
        raise KmsError(message, reason="wrong_root")
    if image_hash and not hmac.compare_digest(keys.os_image_hash, image_hash):
        found = keys.os_image_hash.hex() or "none"
        message = f"os_image_hash: {found}, but the VM configuration has {image_hash.hex()}"
        raise KmsError(message, reason="wrong_image")
    return k256_root


def _root_key(pem: str, known: Certificate) -> bytes:
    """Return the SubjectPublicKeyInfo of a certificate, which normally is the known one."""
    return (known if pem == known.pem else read_only_certificate(pem)).spki_der


def _check_signature(keys: ReceivedKeys, app_id: bytes, roots: Sequence[KmsRoot]) -> bytes:
    public_key, problem = None, ""
    try:
        public_key = k256_public_key(keys.k256_key)
    except UsageError as error:
        problem = str(error)
    if public_key is None:  # outside of the handler, because the frames of its error hold the key
        raise KmsError(f"k256_key: {problem}", reason="invalid_key")
    try:
        k256_root = recover_kms_root(public_key, app_id, keys.k256_signature)
    except SignatureError as error:
        raise KmsError(f"k256_signature: {error}", reason="bad_signature") from error
    if not any(root.may_be_k256(k256_root) for root in roots):
        message = (
            f"k256_signature: leads to {k256_root.hex()}, which is not the pinned key; it may be "
            "the signature for another app"
        )
        raise KmsError(message, reason="bad_signature")
    return k256_root


def not_proven(root: KmsRoot, pins: Sequence[KmsRoot] | None) -> tuple[str, ...]:
    """Return what pins do not prove about accepted root keys, as in `FetchedKeys`.

    Args:
        root: Both root keys of the KMS.
        pins: The pinned roots; None if the KMS was trusted on first use.
    """
    if pins is None:
        return ("kms_root", "kms_k256_root")
    return () if root in pins else ("kms_k256_root",)  # accepted by a pin of the CA alone
