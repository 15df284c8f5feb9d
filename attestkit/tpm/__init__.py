"""Structures of a TPM 2.0 quote (TCG TPM 2.0 Library, Part 2): quote, signature, keys and PCRs.

Readers are strict; encoding a parsed structure gives the same bytes. All integers are big-endian.
"""

from typing import TYPE_CHECKING

from attestkit._package import lazy_names

if TYPE_CHECKING:
    from attestkit.tpm.attest import TpmsAttest, TpmtSignature
    from attestkit.tpm.pcr_selection import PcrSelection, pcr_digest
    from attestkit.tpm.public_area import TpmtPublic
else:
    # Lazy: readers of logs need the facts about PCRs only.
    __getattr__, __dir__ = lazy_names(
        __name__,
        {
            "attest": ["TpmsAttest", "TpmtSignature"],
            "pcr_selection": ["PcrSelection", "pcr_digest"],
            "public_area": ["TpmtPublic"],
        },
    )

__all__ = ["PcrSelection", "TpmsAttest", "TpmtPublic", "TpmtSignature", "pcr_digest"]
