"""Keys of a KMS that passed all checks, and what no pin proves about the KMS."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from attestkit.keys import AppKeys
from attestkit.kms.root import KmsRoot

if TYPE_CHECKING:
    from attestkit.verifier import AttestationResult


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


def not_proven(root: KmsRoot, pins: Sequence[KmsRoot] | None) -> tuple[str, ...]:
    """Return what pins do not prove about accepted root keys, as in `FetchedKeys`.

    Args:
        root: Both root keys of the KMS.
        pins: The pinned roots; None if the KMS was trusted on first use.
    """
    if pins is None:
        return ("kms_root", "kms_k256_root")
    return () if root in pins else ("kms_k256_root",)  # accepted by a pin of the CA alone
