"""Reasons why Intel's evidence is refused, and which of our exceptions each of them is.

The words are the classes of simulated-pki.md, section 12. Those that it lacks are
`cert_bad_signature`, `cert_constraints` and `cert_malformed` (a certificate is not one, or not of
its place), `enclave_debug` (a bare SGX quote), `pck_chain_missing` (neither quote nor collateral
has the PCK certificate), `ppid_mismatch`, `qe_identity_malformed`, and `rejected`: dcap-qvl said
something that nobody has met.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final

from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
    UsageError,
    VerificationError,
)

__all__ = ["BAD_QE_REPORT", "BAD_QUOTE", "is_own_fault", "moment", "refuse"]

# Reasons of the evidence's own, for which no other collateral would make up.
_OWN_FAULTS: Final = frozenset(
    {
        "attestation_key_unbound",
        "qe_report_bad_signature",
        "quote_bad_signature",
        "tcb_revoked",
        "td_debug",
        "enclave_debug",
        "td_attributes",
        "service_td",
    }
)


def is_own_fault(error: Exception) -> bool:
    """Tell whether evidence was refused for what it is itself, whatever the collateral."""
    if isinstance(error, (FormatError, UsageError)):
        return True
    return isinstance(error, VerificationError) and error.reason in _OWN_FAULTS


# Reason and message of what dcap-qvl finds, and we ourselves before collateral is fetched.
BAD_QE_REPORT: Final = (
    "qe_report_bad_signature",
    "the QE report is not signed by the PCK certificate's key",
)
BAD_QUOTE: Final = (
    "quote_bad_signature",
    "the quote's signature does not hold: it was altered after it had been signed",
)

_VERIFICATION: Final = (
    "tcb_info_wrong_type",
    "qe_identity_wrong_type",
    "tcb_info_mismatch",
    "tcb_not_supported",
    "tdx_module_mismatch",
    "qe_identity_mismatch",
    "tcb_revoked",
    "td_debug",
    "enclave_debug",
    "td_attributes",
    "service_td",
)
_EXPIRED: Final = (
    "crl_expired",
    "cert_expired",
    "tcb_info_expired",
    "tcb_info_not_yet_valid",
    "qe_identity_expired",
    "qe_identity_not_yet_valid",
)
_MALFORMED: Final = (
    "crl_malformed",
    "cert_malformed",
    "tcb_info_malformed",
    "qe_identity_malformed",
    "pck_chain_missing",
)


def refuse(reason: str, message: str) -> AttestKitError:
    """Return the error for `reason`, for the caller to raise; `reason` is an attribute of it.

    It is a CollateralExpiredError for endorsements too old or too new, a CollateralError for
    malformed or missing ones, a FormatError for `quote_format`, a VerificationError where all is
    signed and the platform is not acceptable, and a SignatureError for everything else.
    """
    return _KINDS.get(reason, SignatureError)(message, reason=reason)


def moment(when: datetime) -> str:
    """Return a time as refusals show it."""
    return when.isoformat().replace("+00:00", "Z")


_KINDS: Final[dict[str, Callable[..., AttestKitError]]] = {
    **dict.fromkeys(_VERIFICATION, VerificationError),
    **dict.fromkeys(_EXPIRED, CollateralExpiredError),
    **dict.fromkeys(_MALFORMED, CollateralError),
    "quote_format": FormatError,
}
