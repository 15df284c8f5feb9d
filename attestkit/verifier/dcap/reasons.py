"""Reasons for the rejection of SGX and TDX quotes, and the exception class of each.

docs/errors.md explains each reason.
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from typing import Final, Literal

from attestkit._outcomes.reasons import CollateralReason, VerificationReason
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
    """Return whether a quote rejected with this error would be rejected with any collateral."""
    if isinstance(error, (FormatError, UsageError)):
        return True
    return isinstance(error, VerificationError) and error.reason in _INDEPENDENT


LATEST: Final = 253402300799
"""End of the year 9999 in Unix seconds."""
FRESH: Final = "fetch fresh collateral"
"""Remedy in error messages."""


def refuse(reason: DcapReason, message: str) -> AttestKitError:
    """Return the exception for a reason, for the caller to raise.

    It is a CollateralExpiredError for collateral that is not valid at the time, a CollateralError
    for malformed or missing collateral, a FormatError for `quote_format`, a VerificationError for a
    platform that is not acceptable, and a SignatureError otherwise.

    Args:
        reason: Reason of the rejection.
        message: Text of the error.
    """
    return _KINDS[reason](message, reason=reason)


def moment(seconds: int) -> str:
    """Return a time, Unix seconds, in ISO 8601 for an error text; years after 9999 become 9999."""
    found = datetime.fromtimestamp(min(seconds, LATEST), timezone.utc)
    return found.isoformat().replace("+00:00", "Z")


# Exception class by reason; a reason of several classes belongs to the last of them.
_KINDS: Final[Mapping[str, Callable[..., AttestKitError]]] = {
    reason: kind
    for kind in (VerificationError, SignatureError, CollateralError, CollateralExpiredError)
    for reason in kind.reasons()
} | {"quote_format": FormatError}
