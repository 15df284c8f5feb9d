"""Reasons for the rejection of SGX and TDX quotes, and the exception class of each.

The reasons are those of dcap-verification.md, section 13, and `rejected` for an error of dcap-qvl
that is not in `dcap_reasons`.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Final, Literal

from attestkit._reasons import CollateralReason, VerificationReason
from attestkit.errors import (
    AttestKitError,
    CollateralError,
    CollateralExpiredError,
    FormatError,
    SignatureError,
    UsageError,
    VerificationError,
)

DcapReason = VerificationReason | CollateralReason | Literal["quote_format"]
"""Reason for the rejection of a quote; it determines the exception class."""

__all__ = [
    "BAD_QE_REPORT",
    "BAD_QUOTE",
    "DcapReason",
    "is_independent_of_collateral",
    "moment",
    "refuse",
]

# Reasons that do not depend on the collateral.
_INDEPENDENT: Final = frozenset(
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


def is_independent_of_collateral(error: Exception) -> bool:
    """Return whether an error is independent of the collateral."""
    if isinstance(error, (FormatError, UsageError)):
        return True
    return isinstance(error, VerificationError) and error.reason in _INDEPENDENT


# Used for errors of dcap-qvl, and of `checks_before_fetch`.
BAD_QE_REPORT: Final[tuple[DcapReason, str]] = (
    "qe_report_bad_signature",
    "the QE report is not signed by the PCK certificate's key",
)
BAD_QUOTE: Final[tuple[DcapReason, str]] = (
    "quote_bad_signature",
    "the quote's signature does not hold: it was altered after it had been signed",
)

_VERIFICATION: Final[tuple[DcapReason, ...]] = (
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
    "rejected",
)
_EXPIRED: Final[tuple[DcapReason, ...]] = (
    "crl_expired",
    "cert_expired",
    "tcb_info_expired",
    "tcb_info_not_yet_valid",
    "qe_identity_expired",
    "qe_identity_not_yet_valid",
)
_MALFORMED: Final[tuple[DcapReason, ...]] = (
    "crl_malformed",
    "cert_malformed",
    "tcb_info_malformed",
    "qe_identity_malformed",
    "pck_chain_missing",
)


def refuse(reason: DcapReason, message: str) -> AttestKitError:
    """Return the exception for `reason`, for the caller to raise.

    It is a CollateralExpiredError for collateral that is not valid at the time, a CollateralError
    for malformed or missing collateral, a FormatError for `quote_format`, a VerificationError for a
    platform that is not acceptable, and a SignatureError otherwise.
    """
    return _KINDS.get(reason, SignatureError)(message, reason=reason)


def moment(when: datetime) -> str:
    """Return a time in ISO 8601, for an error text."""
    return when.isoformat().replace("+00:00", "Z")


_KINDS: Final[dict[DcapReason, Callable[..., AttestKitError]]] = {
    **dict.fromkeys(_VERIFICATION, VerificationError),
    **dict.fromkeys(_EXPIRED, CollateralExpiredError),
    **dict.fromkeys(_MALFORMED, CollateralError),
    "quote_format": FormatError,
}
