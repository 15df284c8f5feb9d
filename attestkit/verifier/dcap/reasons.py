"""Reasons for the rejection of SGX and TDX quotes, and the exception class of each.

The reasons are listed in dcap-verification.md, section 13. An error of dcap-qvl that is not in
`error_mapping` has the reason `rejected`.
"""

from collections.abc import Callable, Mapping
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


def refuse(reason: DcapReason, message: str) -> AttestKitError:
    """Return the exception for `reason`, for the caller to raise.

    It is a CollateralExpiredError for collateral that is not valid at the time, a CollateralError
    for malformed or missing collateral, a FormatError for `quote_format`, a VerificationError for a
    platform that is not acceptable, and a SignatureError otherwise.
    """
    return _KINDS[reason](message, reason=reason)


def moment(when: datetime) -> str:
    """Return a time in ISO 8601, for an error text."""
    return when.isoformat().replace("+00:00", "Z")


# Exception class by reason; a reason of several classes belongs to the last of them.
_KINDS: Final[Mapping[str, Callable[..., AttestKitError]]] = {
    reason: kind
    for kind in (VerificationError, SignatureError, CollateralError, CollateralExpiredError)
    for reason in kind.reasons()
} | {"quote_format": FormatError}
