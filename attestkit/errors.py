"""All exceptions of attestkit.

```
AttestKitError
+-- FormatError                   bytes or text break their specification
+-- UsageError                    invalid arguments
+-- ConfigError                   an invalid configuration or policy file
+-- NotFoundError                 the server has no such method, container, page or key
+-- UnsupportedError              the platform does not have this ability
+-- BackendError                  the platform is available and failed
|   +-- BackendUnavailableError   the platform is missing or not accessible
|   +-- BackendBusyError          another process or an earlier request has the device
|   +-- QuoteUnavailableError     the platform is available, but it returned no quote
+-- JournalError                  the runtime event log on disk is unusable
+-- CollateralError               endorsements are missing, malformed, or cannot be fetched
|   +-- CollateralExpiredError    endorsements are out of date; also a VerificationError
+-- VerificationError             well-formed evidence fails verification
    +-- SignatureError            a signature or a certificate chain is not valid
    +-- ReplayError               event log and registers disagree
    +-- PolicyError               authentic evidence that the policy does not accept
```

Every error has a `reason`: one word of the closed list of its class, for programs. The message is
for people, and its wording may change.
"""

from typing import Literal, cast, get_args, get_origin, get_type_hints

from attestkit._reasons import (
    BackendBusyReason,
    BackendReason,
    BackendUnavailableReason,
    CollateralExpiredReason,
    CollateralReason,
    ConfigReason,
    FormatReason,
    JournalReason,
    NotFoundReason,
    PolicyReason,
    QuoteUnavailableReason,
    ReplayReason,
    SignatureReason,
    UnsupportedReason,
    UsageReason,
    VerificationReason,
)

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
    """Base class of all errors that attestkit raises on purpose."""

    def __init__(self, message: str, *, reason: str) -> None:
        Exception.__init__(self, message)  # not the next class of a subclass with two bases
        self._reason = reason

    @property
    def reason(self) -> str:
        """Stable reason, one word of the closed list of the error's class."""
        return self._reason

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle without calling `__init__`, whose keywords BaseException does not keep."""
        return _restore, (type(self), self.args), self.__dict__

    @classmethod
    def reasons(cls) -> frozenset[str]:
        """Return the closed list of reasons of this class; empty for the base class."""
        return _words(get_type_hints(cast("property", cls.reason).fget)["return"])


def _words(hint: object) -> frozenset[str]:
    """Return the strings of a `Literal`, or of a union of them."""
    if get_origin(hint) is Literal:
        return frozenset(get_args(hint))
    return frozenset(word for part in get_args(hint) for word in _words(part))


def _restore(kind: type[AttestKitError], args: tuple[object, ...]) -> AttestKitError:
    return kind.__new__(kind, *args)


class FormatError(AttestKitError, ValueError):
    """Bytes or text break their specification.

    `offset` is the byte of the input where it is broken, counted from 0, or None.
    `message` is the text without that place.
    """

    def __init__(self, message: str, *, reason: FormatReason, offset: int | None = None) -> None:
        text = message if offset is None else f"{message} (byte {offset})"
        super().__init__(text, reason=reason)
        self.message = message
        self.offset = offset

    @property
    def reason(self) -> FormatReason:
        """Stable reason, one word of `FormatReason`."""
        return cast("FormatReason", self._reason)


class UsageError(AttestKitError, ValueError):
    """The caller's arguments are not valid."""

    def __init__(self, message: str, *, reason: UsageReason) -> None:
        super().__init__(message, reason=reason)

    @property
    def reason(self) -> UsageReason:
        """Stable reason, one word of `UsageReason`."""
        return cast("UsageReason", self._reason)


class ConfigError(AttestKitError):
    """A configuration or policy file, or a variable of the environment, is not valid."""

    def __init__(self, message: str, *, reason: ConfigReason) -> None:
        super().__init__(message, reason=reason)

    @property
    def reason(self) -> ConfigReason:
        """Stable reason, one word of `ConfigReason`."""
        return cast("ConfigReason", self._reason)


class NotFoundError(AttestKitError):
    """The server has no such method, container, page or key."""

    def __init__(self, message: str, *, reason: NotFoundReason) -> None:
        super().__init__(message, reason=reason)

    @property
    def reason(self) -> NotFoundReason:
        """Stable reason, one word of `NotFoundReason`."""
        return cast("NotFoundReason", self._reason)


class UnsupportedError(AttestKitError):
    """The platform does not have this ability, whatever the arguments."""

    def __init__(self, message: str, *, reason: UnsupportedReason) -> None:
        super().__init__(message, reason=reason)

    @property
    def reason(self) -> UnsupportedReason:
        """Stable reason, one word of `UnsupportedReason`."""
        return cast("UnsupportedReason", self._reason)


class BackendError(AttestKitError):
    """The platform is available and returned an error or an invalid answer.

    `path` is the file, device or socket that the error is about, or empty.
    """

    def __init__(self, message: str, *, reason: BackendReason, path: str = "") -> None:
        super().__init__(message, reason=reason)
        self.path = path

    @property
    def reason(self) -> BackendReason:
        """Stable reason, one word of `BackendReason`."""
        return cast("BackendReason", self._reason)


class BackendUnavailableError(BackendError):
    """The platform is missing or not accessible to this process."""

    def __init__(self, message: str, *, reason: BackendUnavailableReason, path: str = "") -> None:
        super().__init__(message, reason=reason, path=path)

    @property
    def reason(self) -> BackendUnavailableReason:
        """Stable reason, one word of `BackendUnavailableReason`."""
        return cast("BackendUnavailableReason", self._reason)


class BackendBusyError(BackendError):
    """Another process or an earlier request has the device; retry later."""

    def __init__(self, message: str, *, reason: BackendBusyReason, path: str = "") -> None:
        super().__init__(message, reason=reason, path=path)

    @property
    def reason(self) -> BackendBusyReason:
        """Stable reason, one word of `BackendBusyReason`."""
        return cast("BackendBusyReason", self._reason)


class QuoteUnavailableError(BackendError):
    """The platform is available, but it returned no quote."""

    def __init__(self, message: str, *, reason: QuoteUnavailableReason, path: str = "") -> None:
        super().__init__(message, reason=reason, path=path)

    @property
    def reason(self) -> QuoteUnavailableReason:
        """Stable reason, one word of `QuoteUnavailableReason`."""
        return cast("QuoteUnavailableReason", self._reason)


class JournalError(AttestKitError):
    """The runtime event log on disk is unusable or does not match the register.

    For the reason `mismatch`, `expected` is the value that the log replays to and `actual` the
    value of RTMR3; otherwise both are empty.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: JournalReason,
        expected: bytes = b"",
        actual: bytes = b"",
    ) -> None:
        super().__init__(message, reason=reason)
        self.expected = expected
        self.actual = actual

    @property
    def reason(self) -> JournalReason:
        """Stable reason, one word of `JournalReason`."""
        return cast("JournalReason", self._reason)


class CollateralError(AttestKitError):
    """Endorsements are missing, malformed, or cannot be fetched."""

    def __init__(self, message: str, *, reason: CollateralReason) -> None:
        super().__init__(message, reason=reason)

    @property
    def reason(self) -> CollateralReason:
        """Stable reason, one word of `CollateralReason`."""
        return cast("CollateralReason", self._reason)


class VerificationError(AttestKitError):
    """Well-formed evidence fails verification.

    `steps` lists the checks that had passed before.
    """

    def __init__(
        self, message: str, *, reason: VerificationReason, steps: tuple[str, ...] = ()
    ) -> None:
        AttestKitError.__init__(self, message, reason=reason)
        self.steps = steps

    @property
    def reason(self) -> VerificationReason:
        """Stable reason, one word of `VerificationReason`."""
        return cast("VerificationReason", self._reason)


class CollateralExpiredError(VerificationError, CollateralError):
    """Endorsements are too old or too new for the time of the verification."""

    def __init__(
        self, message: str, *, reason: CollateralExpiredReason, steps: tuple[str, ...] = ()
    ) -> None:
        VerificationError.__init__(self, message, reason=reason, steps=steps)

    @property
    def reason(self) -> CollateralExpiredReason:
        """Stable reason, one word of `CollateralExpiredReason`."""
        return cast("CollateralExpiredReason", self._reason)


class SignatureError(VerificationError):
    """A signature or a certificate chain is not valid."""

    def __init__(
        self, message: str, *, reason: SignatureReason, steps: tuple[str, ...] = ()
    ) -> None:
        super().__init__(message, reason=reason, steps=steps)

    @property
    def reason(self) -> SignatureReason:
        """Stable reason, one word of `SignatureReason`."""
        return cast("SignatureReason", self._reason)


class ReplayError(VerificationError):
    """Event log and registers disagree.

    `register` is the number of the first RTMR that differs, or None. `expected` is the value that
    the log replays to, `actual` the value of the register; both are empty if not known.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: ReplayReason,
        steps: tuple[str, ...] = (),
        register: int | None = None,
        expected: bytes = b"",
        actual: bytes = b"",
    ) -> None:
        super().__init__(message, reason=reason, steps=steps)
        self.register = register
        self.expected = expected
        self.actual = actual

    @property
    def reason(self) -> ReplayReason:
        """Stable reason, one word of `ReplayReason`."""
        return cast("ReplayReason", self._reason)


class PolicyError(VerificationError):
    """The evidence is authentic, and the policy does not accept it."""

    def __init__(self, message: str, *, reason: PolicyReason, steps: tuple[str, ...] = ()) -> None:
        super().__init__(message, reason=reason, steps=steps)

    @property
    def reason(self) -> PolicyReason:
        """Stable reason, one word of `PolicyReason`."""
        return cast("PolicyReason", self._reason)
