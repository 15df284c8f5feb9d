"""ACPI tables: the part of a machine that its host writes and the guest's kernel runs code from.

`os_image_hash` says which firmware, kernel and file system were started, not with which tables. Of
a TD their digests come from the log (attestation-format.md, section 12.2), so RTMR0 is the image's
whatever they are; a reference value of RTMR0 pins them. The launch measurement of an SEV-SNP guest
(section 12.3) has none of them. An AWS Nitro enclave is given none by its operator.
"""

from collections.abc import Mapping
from typing import Final

from attestkit.verifier.result import Claims

__all__ = ["are_pinned", "caution"]

_REST_OF_IMAGE: Final = frozenset({"mrtd", "rtmr1", "rtmr2"})

_Pinned = Mapping[str, frozenset[bytes]]
"""Registers that a policy has reference values for, as `ReferenceValues.rules`."""


def are_pinned(claims: Claims, pinned: _Pinned) -> bool:
    """Tell whether evidence that was accepted has no other tables than the policy knows."""
    if claims.platform == "dstack-tdx":
        return claims.register("rtmr0") in pinned.get("rtmr0", ())
    return claims.platform == "dstack-nitro-enclave"


def caution(claims: Claims, pinned: _Pinned) -> str:
    """Return a warning where an image is recognised, or pinned, whatever its ACPI tables are."""
    named = bool(claims.os_image_hash)
    if claims.platform == "dstack-tdx" and (named or pinned.keys() >= _REST_OF_IMAGE):
        if "rtmr0" in pinned:
            return ""
        return (
            "caution: the ACPI tables are whichever the host chose, and the kernel runs the code "
            "in them; pin rtmr0 as well, which has their digests"
        )
    if claims.platform == "dstack-amd-sev-snp" and named:
        return (
            "caution: nothing measures the ACPI tables that the host gives an SEV-SNP guest, and "
            "the kernel runs the code in them; no rule can pin them"
        )
    return ""
