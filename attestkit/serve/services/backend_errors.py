"""Errors of the platform as clients receive them."""

from attestkit.errors import AttestKitError, BackendError, FormatError, JournalError


def backend_error(failure: str, error: AttestKitError) -> BackendError:
    """Return the BackendError that reports `error` to a client, after the text `failure`.

    Its reason is that of `error` if this is a BackendError; `state` for a JournalError,
    `malformed_response` for a FormatError, else `io_error`.
    """
    text = f"{failure}: {error}"
    if isinstance(error, BackendError):
        return BackendError(text, reason=error.reason)
    if isinstance(error, JournalError):
        return BackendError(text, reason="state")
    malformed = isinstance(error, FormatError)
    return BackendError(text, reason="malformed_response" if malformed else "io_error")
