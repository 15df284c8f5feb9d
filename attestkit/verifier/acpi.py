"""ACPI tables: written by the host, and executed by the guest's kernel.

`os_image_hash` covers firmware, kernel and file system, not the ACPI tables. For a TD, the expected
RTMR0 is computed with the table digests of the event log (attestation-format.md, section 12.2), so
that it matches any tables; a reference value of RTMR0 pins the tables. A verifier with `images`
recomputes them from the VM's shape, which shows that they are QEMU's. The launch measurement of an
SEV-SNP guest (section 12.3) does not cover them. An AWS Nitro enclave has no ACPI tables from its
operator.
"""

from collections.abc import Mapping
from typing import Final

from attestkit._verification_steps import VerificationStep
from attestkit.verifier.claims import Claims, caution

# TDs whose firmware measures the tables into RTMR0; behind a paravisor it is zero.
_TDS: Final = ("dstack-tdx", "dstack-gcp-tdx")
_REST_OF_IMAGE: Final = frozenset({"mrtd", "rtmr1", "rtmr2"})

_TD_CAUTION: Final = caution(
    "acpi_tables",
    "the host chose the ACPI tables, and the kernel runs the code in them; pin rtmr0 as well, "
    "which has their digests",
)
_SNP_CAUTION: Final = caution(
    "acpi_tables",
    "the ACPI tables from the host of an SEV-SNP guest are not measured, and the kernel runs the "
    "code in them; no rule can pin them",
)

_Pinned = Mapping[str, frozenset[bytes]]
"""Reference values of a policy by register, as in `ReferenceValues.rules`."""


def are_pinned(claims: Claims, pinned: _Pinned) -> bool:
    """Return whether the policy that accepted `claims` pins the ACPI tables, or they are QEMU's."""
    if claims.platform in _TDS:
        return claims.acpi_tables_verified or claims.get("rtmr0") in pinned.get("rtmr0", ())
    return claims.platform == "dstack-nitro-enclave"


def find_caution(claims: Claims, pinned: _Pinned) -> VerificationStep | None:
    """Return a caution if the image is verified or pinned, but its ACPI tables are not."""
    named = bool(claims.os_image_hash)
    if claims.platform in _TDS and (named or pinned.keys() >= _REST_OF_IMAGE):
        return None if claims.acpi_tables_verified or "rtmr0" in pinned else _TD_CAUTION
    if claims.platform == "dstack-amd-sev-snp" and named:
        return _SNP_CAUTION
    return None
