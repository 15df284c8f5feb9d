"""All exceptions of attestkit.

```
AttestKitError
+-- FormatError                   bytes or text break their specification
+-- UsageError                    invalid arguments
+-- ConfigError                   an invalid configuration or policy file
+-- NotFoundError                 the server has no such method, container or page
+-- UnsupportedError              the platform does not have this ability
+-- BackendError                  the platform is available and failed
|   +-- BackendUnavailableError   the platform is missing or not accessible
|   +-- BackendBusyError          another process or an earlier request has the device
|   +-- QuoteUnavailableError     the platform is available, but it returned no quote
+-- JournalError                  the runtime event log on disk is unusable
+-- KmsError                      a key management service failed, refused, or is not accepted
+-- ServiceError                  a server could not be proven to be the required service
+-- CollateralError               endorsements are missing, malformed, or cannot be fetched
|   +-- CollateralExpiredError    endorsements are out of date; also a VerificationError
+-- VerificationError             well-formed evidence fails verification
    +-- GpuEvidenceError          the evidence of GPUs is not valid, or not accepted
    +-- SignatureError            a signature or a certificate chain is not valid
    +-- ReplayError               event log and registers disagree
    +-- PolicyError               authentic evidence that the policy does not accept
```

Every error has a `reason`: one word of the closed list of its class, for programs. The message is
for people, and its wording may change.
"""

# The list of reasons of a class is a part of that of its base.
# pyright: reportIncompatibleVariableOverride=false

from typing import Final, Generic, Literal, NoReturn, TypeVar, get_args, get_origin

from attestkit._outcomes.reasons import (
    BackendBusyReason,
    BackendReason,
    BackendUnavailableReason,
    CollateralExpiredReason,
    CollateralReason,
    ConfigReason,
    FormatReason,
    JournalReason,
    KmsReason,
    NotFoundReason,
    PolicyReason,
    QuoteUnavailableReason,
    ReplayReason,
    ServiceReason,
    SignatureReason,
    UnsupportedReason,
    UsageReason,
    VerificationReason,
)
from attestkit._outcomes.steps import GpuReason, VerificationStep

__all__ = [
    "AttestKitError",
    "BackendBusyError",
    "BackendError",
    "BackendUnavailableError",
    "CollateralError",
    "CollateralExpiredError",
    "ConfigError",
    "FormatError",
    "GpuEvidenceError",
    "JournalError",
    "KmsError",
    "NotFoundError",
    "PolicyError",
    "QuoteUnavailableError",
    "ReplayError",
    "ServiceError",
    "SignatureError",
    "UnsupportedError",
    "UsageError",
    "VerificationError",
]

R_co = TypeVar("R_co", bound=str, covariant=True)


class ReasonOf(Generic[R_co]):
    """Read-only attribute `reason` of an error class; the type argument lists its values."""

    def __get__(self, error: "AttestKitError | None", _: object = None) -> R_co:
        if error is None:  # of the class, as `inspect` and `help` read it
            raise AttributeError("reason: an attribute of errors, not of their classes")
        reason: R_co = vars(error)["_reason"]
        return reason

    def __set__(self, error: "AttestKitError", _: object) -> NoReturn:
        raise AttributeError(f"{type(error).__name__}: reason is read-only")


class AttestKitError(Exception):
    """Base class of all errors that attestkit raises on purpose.

    `Verifier.verify_many` and `verify_stream` return errors in place of results. Such an error is
    false in a condition, so that `if outcome:` accepts results only. When it is raised, it becomes
    true, as every other error is.

    `message` is the text for people, and `reason` a word for programs.

    Attributes:
        reason: Stable reason, one word of the closed list of the error's class.
    """

    reason: ReasonOf[str] = ReasonOf[str]()
    _returned = False
    _unpickled = False

    def __init__(self, message: str, *, reason: str) -> None:
        Exception.__init__(self, message)  # not the next class of a subclass with two bases
        self._reason = reason

    def __reduce__(self) -> tuple[object, ...]:
        """Pickle without calling `__init__`, because BaseException does not store its keywords."""
        return _restore, (type(self), self.args), {**self.__dict__, "_unpickled": True}

    def __bool__(self) -> bool:
        """Return False for an error that a batch returned in place of a result; see the class."""
        # A raised error is true, because executors of Python ignore exceptions that are false. One
        # that was raised in another process has no traceback, but the executor sets its cause.
        raised_elsewhere = self._unpickled and self.__cause__ is not None
        return not self._returned or self.__traceback__ is not None or raised_elsewhere

    @classmethod
    def reasons(cls) -> frozenset[str]:
        """Return the closed list of reasons of this class; empty for the base class."""
        found = next(vars(kind)["reason"] for kind in cls.__mro__ if "reason" in vars(kind))
        return _words(get_args(found.__orig_class__)[0])


def return_error(error: AttestKitError) -> AttestKitError:
    """Make an error false in a condition, and return it; for batches, in place of a result."""
    error._returned = True  # noqa: SLF001 - of this module's class
    return error.with_traceback(None)


def _words(hint: object) -> frozenset[str]:
    """Return the strings of `hint`, a `Literal` or a union of them."""
    if get_origin(hint) is Literal:
        return frozenset(get_args(hint))
    return frozenset(word for part in get_args(hint) for word in _words(part))


def _restore(kind: type[AttestKitError], args: tuple[object, ...]) -> AttestKitError:
    return kind.__new__(kind, *args)


class FormatError(AttestKitError, ValueError):
    """Bytes or text break their specification.

    `offset` is the position of the violation in the input, in bytes from 0, or None if unknown.
    `message` is the error message without the offset.
    """

    reason: ReasonOf[FormatReason] = ReasonOf[FormatReason]()

    def __init__(self, message: str, *, reason: FormatReason, offset: int | None = None) -> None:
        text = message if offset is None else f"{message} (byte {offset})"
        super().__init__(text, reason=reason)
        self.message = message
        self.offset = offset


class UsageError(AttestKitError, ValueError):
    """The caller's arguments are not valid."""

    reason: ReasonOf[UsageReason] = ReasonOf[UsageReason]()

    def __init__(self, message: str, *, reason: UsageReason) -> None:
        super().__init__(message, reason=reason)


class ConfigError(AttestKitError):
    """A configuration or policy file, or a variable of the environment, is not valid."""

    reason: ReasonOf[ConfigReason] = ReasonOf[ConfigReason]()

    def __init__(self, message: str, *, reason: ConfigReason) -> None:
        super().__init__(message, reason=reason)


class NotFoundError(AttestKitError):
    """The server has no such method, container or page."""

    reason: ReasonOf[NotFoundReason] = ReasonOf[NotFoundReason]()

    def __init__(self, message: str, *, reason: NotFoundReason) -> None:
        super().__init__(message, reason=reason)


class UnsupportedError(AttestKitError):
    """The platform does not have this ability, whatever the arguments."""

    reason: ReasonOf[UnsupportedReason] = ReasonOf[UnsupportedReason]()

    def __init__(self, message: str, *, reason: UnsupportedReason) -> None:
        super().__init__(message, reason=reason)


class BackendError(AttestKitError):
    """The platform is available and returned an error or an invalid answer.

    `path` is the file, device or socket that the error is about, or empty.
    """

    reason: ReasonOf[BackendReason] = ReasonOf[BackendReason]()

    def __init__(self, message: str, *, reason: BackendReason, path: str = "") -> None:
        super().__init__(message, reason=reason)
        self.path = path


class BackendUnavailableError(BackendError):
    """The platform is missing or not accessible to this process."""

    reason: ReasonOf[BackendUnavailableReason] = ReasonOf[BackendUnavailableReason]()

    def __init__(self, message: str, *, reason: BackendUnavailableReason, path: str = "") -> None:
        super().__init__(message, reason=reason, path=path)


class BackendBusyError(BackendError):
    """Another process or an earlier request has the device; retry later."""

    reason: ReasonOf[BackendBusyReason] = ReasonOf[BackendBusyReason]()

    def __init__(self, message: str, *, reason: BackendBusyReason, path: str = "") -> None:
        super().__init__(message, reason=reason, path=path)


class QuoteUnavailableError(BackendError):
    """The platform is available, but it returned no quote."""

    reason: ReasonOf[QuoteUnavailableReason] = ReasonOf[QuoteUnavailableReason]()

    def __init__(self, message: str, *, reason: QuoteUnavailableReason, path: str = "") -> None:
        super().__init__(message, reason=reason, path=path)


class JournalError(AttestKitError):
    """The runtime event log on disk is unusable or does not match the register.

    For the reason `mismatch`, `expected` is the value that the log replays to and `actual` the
    value of the register (RTMR3, or a TPM's PCR for events); otherwise both are empty.
    """

    reason: ReasonOf[JournalReason] = ReasonOf[JournalReason]()

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


_KMS_REJECTIONS: Final = frozenset(
    {
        *("bad_signature", "evidence_refused", "expired", "invalid_key", "no_evidence", "refused"),
        *("wrong_certificate", "wrong_identity", "wrong_image", "wrong_provider", "wrong_root"),
        *("wrong_size", "wrong_usage"),
    }
)


class KmsError(AttestKitError):
    """A key management service (KMS) failed, refused, or its answer is not accepted.

    Nothing of the answer was used. The message and its causes contain no key.

    Attributes:
        url: Base URL of the KMS; empty if the error is not about a single one.
        failures: If several URLs were tried, the error of each, in order.
    """

    reason: ReasonOf[KmsReason] = ReasonOf[KmsReason]()

    def __init__(
        self,
        message: str,
        *,
        reason: KmsReason,
        url: str = "",
        failures: "tuple[KmsError, ...]" = (),
    ) -> None:
        super().__init__(message, reason=reason)
        self.url = url
        self.failures = failures

    @property
    def is_rejection(self) -> bool:
        """Whether the KMS refused, or its answer failed a check: a retry would fail as well."""
        return self.reason in _KMS_REJECTIONS


class ServiceError(AttestKitError):
    """A server's evidence does not show that it is the required service, or that it sent an answer.

    Nothing of a request was sent, unless the reason is `sealing` or `signature`.
    """

    reason: ReasonOf[ServiceReason] = ReasonOf[ServiceReason]()

    def __init__(self, message: str, *, reason: ServiceReason) -> None:
        super().__init__(message, reason=reason)


class CollateralError(AttestKitError):
    """Endorsements are missing, malformed, or cannot be fetched."""

    reason: ReasonOf[CollateralReason] = ReasonOf[CollateralReason]()

    def __init__(self, message: str, *, reason: CollateralReason) -> None:
        super().__init__(message, reason=reason)


class VerificationError(AttestKitError):
    """Well-formed evidence fails verification.

    `steps` lists the checks that had passed before.
    """

    reason: ReasonOf[VerificationReason] = ReasonOf[VerificationReason]()

    def __init__(
        self, message: str, *, reason: VerificationReason, steps: tuple[VerificationStep, ...] = ()
    ) -> None:
        AttestKitError.__init__(self, message, reason=reason)
        self.steps = steps


class CollateralExpiredError(VerificationError, CollateralError):
    """Endorsements are too old or too new for the time of the verification."""

    reason: ReasonOf[CollateralExpiredReason] = ReasonOf[CollateralExpiredReason]()

    def __init__(
        self,
        message: str,
        *,
        reason: CollateralExpiredReason,
        steps: tuple[VerificationStep, ...] = (),
    ) -> None:
        VerificationError.__init__(self, message, reason=reason, steps=steps)


class SignatureError(VerificationError):
    """A signature or a certificate chain is not valid."""

    reason: ReasonOf[SignatureReason] = ReasonOf[SignatureReason]()

    def __init__(
        self, message: str, *, reason: SignatureReason, steps: tuple[VerificationStep, ...] = ()
    ) -> None:
        super().__init__(message, reason=reason, steps=steps)


class ReplayError(VerificationError):
    """Event log and registers disagree.

    `register` is the number of the first RTMR that differs, or None if not known. `expected` is the
    value that the log replays to, `actual` the value of the register; both are empty if not known.
    """

    reason: ReasonOf[ReplayReason] = ReasonOf[ReplayReason]()

    def __init__(
        self,
        message: str,
        *,
        reason: ReplayReason,
        steps: tuple[VerificationStep, ...] = (),
        register: int | None = None,
        expected: bytes = b"",
        actual: bytes = b"",
    ) -> None:
        super().__init__(message, reason=reason, steps=steps)
        self.register = register
        self.expected = expected
        self.actual = actual


class GpuEvidenceError(VerificationError):
    """The evidence of GPUs or NVSwitches is not valid, or not accepted.

    Attributes:
        device: Index of the device in the evidence; None if the error is of no single device.
        by_policy: Whether a rule of the policy does not accept the evidence, rather than a check.
    """

    reason: ReasonOf[GpuReason] = ReasonOf[GpuReason]()

    def __init__(
        self,
        message: str,
        *,
        reason: GpuReason,
        device: int | None = None,
        by_policy: bool = False,
        steps: tuple[VerificationStep, ...] = (),
    ) -> None:
        super().__init__(message, reason=reason, steps=steps)
        self.device = device
        self.by_policy = by_policy


class PolicyError(VerificationError):
    """The evidence is authentic, and the policy does not accept it."""

    reason: ReasonOf[PolicyReason] = ReasonOf[PolicyReason]()

    def __init__(
        self,
        message: str,
        *,
        reason: PolicyReason,
        steps: tuple[VerificationStep, ...] = (),
    ) -> None:
        super().__init__(message, reason=reason, steps=steps)
