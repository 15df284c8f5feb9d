"""Errors of the simulated KMS, and which status they have.

A refusal is 400, never 5xx: clients retry those. 500 is for a failure of the KMS itself.
"""

from typing import Final

from attestkit.errors import (
    AttestKitError,
    BackendError,
    CollateralError,
    ConfigError,
    KmsError,
    UsageError,
)
from attestkit.serve.config.limits import LimitError

_OWN_FAILURES: Final = (BackendError, CollateralError, ConfigError, KmsError, LimitError)
_OF_GUEST: Final = frozenset(
    {
        "cert_expired",  # of the guest's processor
        "missing",  # this KMS verifies no evidence of its kind
        "pck_chain_missing",  # in the guest's quote
    }
)
"""Reasons of a CollateralError that the evidence causes, and not the KMS."""


class KmsRefusalError(UsageError):
    """The KMS refuses a request (400); nothing was released.

    Attributes:
        app_id: Verified id of the app, for the log; empty if it is not known.
    """

    def __init__(self, message: str, app_id: bytes = b"") -> None:
        super().__init__(message, reason="not_applicable")
        self.app_id = app_id


class KmsFailureError(KmsError):
    """The KMS failed (500); nothing was released."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="refused")


class KmsBusyError(LimitError):
    """Too many requests are waiting (503)."""

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="waiting")


def refusal(
    error: AttestKitError, prefix: str = "", *, is_own: bool = False
) -> KmsRefusalError | KmsFailureError:
    """Return the error for a client: a refusal (400), or a failure of the KMS itself (500).

    An error is a failure if the platform, collateral, configuration or authorization of the KMS
    caused it, and not the client's evidence.

    Args:
        error: The error, whose text the result has after `prefix`.
        prefix: Start of the text, with its colon and blank.
        is_own: Whether the error is about the KMS's own evidence, and not that of a client.
    """
    is_of_guest = isinstance(error, CollateralError) and error.reason in _OF_GUEST
    if isinstance(error, _OWN_FAILURES) and (is_own or not is_of_guest):
        return KmsFailureError(f"{prefix}{error}")
    return KmsRefusalError(f"{prefix}{error}", getattr(error, "app_id", b""))
