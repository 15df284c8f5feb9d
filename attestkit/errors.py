"""Every exception of attestkit, so that one `except AttestKitError` catches them all.

```
AttestKitError
+-- FormatError                   bytes break their specification; tells the offset if known
+-- UsageError                    the caller asked for something that cannot be
+-- ConfigError                   a configuration or policy file; tells file, key and reason
+-- NotFoundError                 no such method, container, page, key
+-- UnsupportedError              this platform cannot do that
+-- BackendError                  the platform answered wrongly
|   +-- BackendUnavailableError   the platform is not here; tells what is missing
|   +-- BackendBusyError          somebody else has the device; worth another try
|   +-- QuoteUnavailableError     the platform is here, the quote is not
+-- JournalError                  the runtime log on disk and the register disagree
+-- CollateralError               endorsements are missing or cannot be fetched
|   +-- CollateralExpiredError    they are too old for `now`; also a VerificationError
+-- VerificationError             well formed, must not be believed; `.steps` says how far it got,
    |                             `.reason` what is wrong, in one stable word
    +-- SignatureError            a signature or a chain does not hold
    +-- ReplayError               log and registers disagree
    +-- PolicyError               true, but not what we accept
```
"""

__all__ = [
    "AttestKitError",
    "BackendBusyError",
    "BackendError",
    "BackendUnavailableError",
    "CollateralError",
    "CollateralExpiredError",
    "ConfigError",
    "FormatError",
    "JournalError",
    "NotFoundError",
    "PolicyError",
    "QuoteUnavailableError",
    "ReplayError",
    "SignatureError",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
]


class AttestKitError(Exception):
    """Root of all errors that attestkit raises on purpose."""


class FormatError(AttestKitError, ValueError):
    """Input breaks its specification, at byte `offset` where one is known.

    `reason` is a short stable name of the broken rule (`short_header`, `version`, ...) where the
    format has such names, else an empty string.
    """

    def __init__(self, message: str, *, offset: int | None = None, reason: str = "") -> None:
        super().__init__(message if offset is None else f"{message} (byte {offset})")
        self.message = message
        self.offset = offset
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the keywords, which Exception's own way would lose."""
        return _format_error, (self.message, self.offset, self.reason)


def _format_error(message: str, offset: int | None, reason: str) -> FormatError:
    return FormatError(message, offset=offset, reason=reason)


class UsageError(AttestKitError, ValueError):
    """The caller asked for something that cannot be: too long, an unknown algorithm."""


class ConfigError(AttestKitError):
    """A configuration or policy file is wrong; the text names file, key and reason."""


class NotFoundError(AttestKitError):
    """There is no such method, container, page or key."""


class UnsupportedError(AttestKitError):
    """This platform cannot do that, whatever the arguments."""


class BackendError(AttestKitError):
    """The platform is here and answered wrongly."""


class BackendUnavailableError(BackendError):
    """The platform is not here; the text names what is missing."""


class BackendBusyError(BackendError):
    """Somebody else has the device; the same call may succeed later."""


class QuoteUnavailableError(BackendError):
    """The platform is here, but it gave no quote."""


class JournalError(AttestKitError):
    """The runtime log on disk and the register disagree."""


class CollateralError(AttestKitError):
    """Endorsements are missing, malformed, or cannot be fetched.

    `reason` is a short stable name of what is wrong, where there is one, else an empty string.
    """

    def __init__(self, message: str, *, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the keyword, which Exception's own way would lose."""
        return _collateral_error, (str(self), self.reason)


def _collateral_error(message: str, reason: str) -> CollateralError:
    return CollateralError(message, reason=reason)


class VerificationError(AttestKitError):
    """Evidence is well formed and must not be believed.

    `steps` lists what had passed before. `reason` is a short stable name of what is wrong
    (`untrusted_root`, `tcb_revoked`, `rtmr_mismatch`, ...), else an empty string.
    """

    def __init__(self, message: str, *, steps: tuple[str, ...] = (), reason: str = "") -> None:
        Exception.__init__(self, message)  # not its sibling's, in the class that is both
        self.steps = steps
        self.reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle with the keywords, which Exception's own way would lose."""
        return _verification_error, (type(self), str(self), self.steps, self.reason)


def _verification_error(
    kind: type[VerificationError], message: str, steps: tuple[str, ...], reason: str
) -> VerificationError:
    return kind(message, steps=steps, reason=reason)


class CollateralExpiredError(VerificationError, CollateralError):
    """Endorsements are too old, or too new, for the time of the verification."""


class SignatureError(VerificationError):
    """A signature or a certificate chain does not hold."""


class ReplayError(VerificationError):
    """Log and registers disagree; the text names the register and shows both values."""


class PolicyError(VerificationError):
    """The evidence is true, and not what the policy accepts."""
