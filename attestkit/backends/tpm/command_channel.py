"""Commands of a TPM: codes, time limits, retries while it is busy, and errors of failures."""

import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from attestkit._system.fifo_lock import FifoLock
from attestkit.backends.linux.device_errors import unavailable
from attestkit.backends.tpm.frames import Authorization, TpmCommand, TpmResponse
from attestkit.backends.tpm.transports import TpmTransport, malformed
from attestkit.errors import BackendBusyError, BackendError, FormatError
from attestkit.tpm import response_codes as rc
from attestkit.tpm.command_codes import COMMAND_NAMES, CREATE_PRIMARY, SELF_TEST
from attestkit.tpm.reader import TpmReader

if TYPE_CHECKING:
    from typing_extensions import Self  # only for type checkers, which bundle it

BUSY: Final = frozenset({rc.RC_RETRY, rc.RC_TESTING, rc.RC_YIELDED})
_NOT_LOADED: Final = range(rc.RC_REFERENCE_H0, rc.RC_REFERENCE_H6 + 1)

# Name without TPM_RC_, and meaning or remedy.
_MEANINGS: Final = {
    rc.RC_INITIALIZE: ("INITIALIZE", "the TPM is not started, or already started"),
    rc.RC_FAILURE: ("FAILURE", "the TPM is in failure mode; restart the machine"),
    rc.RC_DISABLED: ("DISABLED", "the command is disabled"),
    rc.RC_EXCLUSIVE: ("EXCLUSIVE", "another session is exclusive"),
    rc.RC_POLICY: ("POLICY", "a policy is not satisfied"),
    rc.RC_PCR: ("PCR", "the PCR check failed"),
    rc.RC_PCR_CHANGED: ("PCR_CHANGED", "a PCR changed"),
    rc.RC_COMMAND_CODE: ("COMMAND_CODE", "the TPM does not have the command"),
    rc.RC_COMMAND_SIZE: ("COMMAND_SIZE", "the command has a wrong size"),
    rc.RC_NV_RANGE: ("NV_RANGE", "offset and size are outside of the NV index"),
    rc.RC_NV_SIZE: ("NV_SIZE", "the data do not fit in the NV index"),
    rc.RC_NV_LOCKED: ("NV_LOCKED", "the NV index is locked"),
    rc.RC_NV_AUTHORIZATION: ("NV_AUTHORIZATION", "the NV index does not permit this authorization"),
    rc.RC_NV_UNINITIALIZED: ("NV_UNINITIALIZED", "the NV index was never written"),
    rc.RC_NV_SPACE: ("NV_SPACE", "no room for another NV index"),
    rc.RC_NV_DEFINED: ("NV_DEFINED", "the NV index or persistent handle is already defined"),
    rc.RC_OBJECT_MEMORY: ("OBJECT_MEMORY", "no room for another key; flush one"),
    rc.RC_SESSION_MEMORY: ("SESSION_MEMORY", "no room for another session; flush one"),
    rc.RC_MEMORY: ("MEMORY", "the TPM is out of memory"),
    rc.RC_SESSION_HANDLES: ("SESSION_HANDLES", "no free handle of a session; flush one"),
    rc.RC_OBJECT_HANDLES: ("OBJECT_HANDLES", "no free handle of a key; flush one"),
    rc.RC_YIELDED: ("YIELDED", "the TPM is busy"),
    rc.RC_TESTING: ("TESTING", "the TPM is testing itself"),
    rc.RC_REFERENCE_H0: ("REFERENCE_H0", "the first handle is not loaded"),
    rc.RC_REFERENCE_S0: ("REFERENCE_S0", "the session is not loaded"),
    rc.RC_LOCKOUT: ("LOCKOUT", "too many wrong passwords: the TPM is locked out"),
    rc.RC_RETRY: ("RETRY", "the TPM is busy"),
    rc.RC_NV_UNAVAILABLE: ("NV_UNAVAILABLE", "the NV memory is not accessible"),
}
_FORMAT_1_MEANINGS: Final = {
    rc.RC_ASYMMETRIC: ("ASYMMETRIC", "unsupported asymmetric algorithm"),
    rc.RC_ATTRIBUTES: ("ATTRIBUTES", "inconsistent attributes"),
    rc.RC_HASH: ("HASH", "unsupported hash algorithm"),
    rc.RC_VALUE: ("VALUE", "a value is out of range"),
    rc.RC_HIERARCHY: ("HIERARCHY", "the hierarchy is not enabled or not correct"),
    rc.RC_KEY_SIZE: ("KEY_SIZE", "unsupported size of a key"),
    rc.RC_TYPE: ("TYPE", "wrong type"),
    rc.RC_HANDLE: ("HANDLE", "no such handle or NV index"),
    rc.RC_AUTH_FAIL: ("AUTH_FAIL", "wrong password or HMAC"),
    rc.RC_NONCE: ("NONCE", "wrong size of a nonce"),
    rc.RC_SCHEME: ("SCHEME", "unsupported scheme"),
    rc.RC_SIZE: ("SIZE", "wrong size"),
    rc.RC_SYMMETRIC: ("SYMMETRIC", "unsupported symmetric algorithm"),
    rc.RC_SELECTOR: ("SELECTOR", "unsupported selector"),
    rc.RC_INSUFFICIENT: ("INSUFFICIENT", "the command is truncated"),
    rc.RC_POLICY_FAIL: ("POLICY_FAIL", "a policy is not satisfied"),
    rc.RC_INTEGRITY: ("INTEGRITY", "an integrity check failed"),
    rc.RC_BAD_AUTH: ("BAD_AUTH", "wrong password or HMAC"),
    rc.RC_CURVE: ("CURVE", "unsupported curve"),
    rc.RC_ECC_POINT: ("ECC_POINT", "not a point of the curve"),
}


class TpmError(BackendError):
    """A TPM answered a command with an error; `code` is the response code."""

    def __init__(self, subject: str, code: int, *, path: str = "") -> None:
        prefix = f"{path}: " if path else ""
        super().__init__(f"{prefix}{subject}: {describe(code)}", reason="tpm_error", path=path)
        self.code = code

    @property
    def is_absent(self) -> bool:
        """Whether a handle or an NV index does not exist, or the index was never written."""
        return is_absent(self.code)

    @property
    def is_unknown_command(self) -> bool:
        """Whether the TPM, or the kernel's resource manager, does not have the command."""
        return self.code in (rc.RC_COMMAND_CODE, rc.RC_RESMGR_COMMAND_CODE)

    @property
    def is_denied(self) -> bool:
        """Whether the TPM rejected the authorization.

        Password or HMAC are wrong, or give no access to the NV index.
        """
        return self.code == rc.RC_NV_AUTHORIZATION or base_code(self.code) in (
            rc.RC_AUTH_FAIL,
            rc.RC_BAD_AUTH,
        )


class TpmBusyError(BackendBusyError):
    """A TPM was busy until the time limit of a command; `code` is its last response code."""

    def __init__(self, subject: str, code: int, seconds: float, *, path: str = "") -> None:
        prefix = f"{path}: " if path else ""
        text = f"{prefix}{subject}: busy for {seconds:g} s ({describe(code)}); retry later"
        super().__init__(text, reason="device", path=path)
        self.code = code


def base_code(code: int) -> int:
    """Return a response code without the number of its parameter, session or handle (format 1)."""
    return code & 0xBF if code & rc.FORMAT_1 and code < 0x1000 else code


def is_absent(code: int) -> bool:
    """Return whether a response code means that a handle is absent or an NV index unwritten."""
    wrong_handle = base_code(code) == rc.RC_HANDLE and not code & (rc.PARAMETER | rc.SESSION)
    return wrong_handle or code == rc.RC_NV_UNINITIALIZED or code in _NOT_LOADED


def describe(code: int) -> str:
    """Return a response code as text, such as "0x18b, TPM_RC_HANDLE of handle 1: ..."."""
    if code == rc.RC_RESMGR_COMMAND_CODE:
        return f"{code:#x}: the kernel's resource manager refused the command as unknown"
    if code >> 16:
        return f"{code:#x}, layer {code >> 16:#x}: {describe(code & 0xFFFF)}"
    if not code & rc.FORMAT_1:
        name, meaning = _MEANINGS.get(code, ("", "see TPM 2.0 Library, Part 2, section 6.6"))
        return f"{code:#x}{f', TPM_RC_{name}' if name else ''}: {meaning}"
    name, meaning = _FORMAT_1_MEANINGS.get(
        base_code(code), ("", "see TPM 2.0 Library, Part 2, section 6.6")
    )
    if code & rc.PARAMETER:
        place = f"parameter {code >> 8 & 0xF}"
    elif code & rc.SESSION:
        place = f"session {code >> 8 & 7}"
    else:
        place = f"handle {code >> 8 & 7}"
    return f"{code:#x}{f', TPM_RC_{name}' if name else ''} of {place}: {meaning}"


SECONDS: Final = 2.0
"""Time limit of a command in seconds, with its retries."""

KEY_SECONDS: Final = 60.0
"""Time limit in seconds of a command that may generate a key or test all algorithms."""

_LONG: Final = frozenset({CREATE_PRIMARY, SELF_TEST})
_FIRST_WAIT: Final = 0.002  # seconds before the first retry; doubled for each further one
_LONGEST_WAIT: Final = 0.1
_LEAST_LIMIT: Final = 0.001  # seconds for the exchange of the last retry
_MOST_RETRIES: Final = 1000


class CommandChannel:
    """Sends commands to a TPM and parses the frames of its responses. Thread-safe.

    Args:
        transport: Carries the frames of commands and responses; this object closes it.
        seconds: Time limit of a command in seconds, including retries while the TPM is busy.
        key_seconds: Time limit of CreatePrimary and SelfTest in seconds.
        clock: Returns seconds of a monotonic clock.
        sleep: Sleeps for the given number of seconds.
    """

    def __init__(
        self,
        transport: TpmTransport,
        *,
        seconds: float = SECONDS,
        key_seconds: float = KEY_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.transport = transport
        self._seconds = seconds
        self._key_seconds = key_seconds
        self._clock = clock
        self._sleep = sleep

    @property
    def path(self) -> str:
        """The path of the TPM, for errors."""
        return self.transport.path

    @property
    def lock(self) -> FifoLock:
        """The transport's lock, re-entrant: hold it for commands that belong together."""
        return self.transport.lock

    def execute(
        self,
        code: int,
        handles: Iterable[int] = (),
        parameters: bytes = b"",
        authorizations: Iterable[Authorization] = (),
        *,
        returns_handle: bool = False,
        seconds: float | None = None,
    ) -> TpmResponse:
        """Send a command and return its successful response.

        While the TPM answers that it is busy, the command is sent again, until the time limit.

        Args:
            code: The command code.
            handles: The handles of the command.
            parameters: Its parameters, encoded.
            authorizations: One for each handle that needs one.
            returns_handle: Whether the response has a handle.
            seconds: Time limit in seconds; None: that of the constructor.

        Raises:
            TpmError: If the TPM answered with an error; `code` is the response code.
            BackendUnavailableError: If the TPM was removed, or is a TPM 1.2.
            BackendBusyError: If the TPM is busy, or does not answer in time.
            BackendError: If the exchange fails or the response is malformed.
            UsageError: If the command is too long, or the transport is closed.
        """
        command = TpmCommand(code, tuple(handles), parameters, tuple(authorizations)).encode()
        limit = seconds
        if limit is None:
            limit = self._key_seconds if code in _LONG else self._seconds
        response = self._exchange(command, limit, returns_handle=returns_handle)
        subject = COMMAND_NAMES.get(code, f"command {code:#010x}")
        if response.code in BUSY:
            raise TpmBusyError(subject, response.code, limit, path=self.path)
        if response.code:
            raise TpmError(subject, response.code, path=self.path)
        return response

    def _exchange(self, command: bytes, limit: float, *, returns_handle: bool) -> TpmResponse:
        """Send a command, again while the TPM is busy; return the last response.

        Args:
            command: Frame of the command.
            limit: Time limit in seconds, with all retries.
            returns_handle: Whether a successful response has a handle.
        """
        deadline, wait = self._clock() + limit, _FIRST_WAIT
        response = self._parse(self.transport.exchange(command, limit), returns_handle)
        for _ in range(_MOST_RETRIES):
            if response.code not in BUSY or self._clock() + wait >= deadline:
                break
            self._sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT)
            left = max(deadline - self._clock(), _LEAST_LIMIT)
            response = self._parse(self.transport.exchange(command, left), returns_handle)
        return response

    def _parse(self, frame: bytes, returns_handle: bool, /) -> TpmResponse:  # noqa: FBT001 - positional
        try:
            return TpmResponse.parse(frame, returns_handle=returns_handle)
        except FormatError as error:
            if error.reason == "unsupported_version":
                text = "must be a TPM 2.0, not a TPM 1.2"
                raise unavailable(self.path, text, "wrong_platform") from error
            raise malformed(self.path, error) from error

    def close(self) -> None:
        """Close the transport; a second call has no effect."""
        self.transport.close()

    def __enter__(self) -> "Self":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ParameterReader(TpmReader):
    """Cursor over the parameters of a response; `end` raises FormatError if bytes are left.

    `command` is the name of the command, for errors.
    """

    __slots__ = ()

    def __init__(self, response: TpmResponse, command: str) -> None:
        super().__init__(response.parameters, f"response to {command}")
